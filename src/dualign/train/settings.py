"""How a model is trained: the settings, and what follows from them for the order of the steps and their rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

Schedule = Literal["linear", "cosine", "constant"]
WINDOW = 8
"""Steps whose examples are sorted by length together: little padding, and still a random order."""


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a model is trained; names follow Hugging Face where the meaning is the same."""

    learning_rate: float = 4e-4
    """Peak rate."""
    num_train_epochs: float = 1.0
    """Passes over the examples; not read when ``max_steps`` is positive."""
    max_steps: int = -1
    """Optimiser steps, if positive."""
    per_device_train_batch_size: int = 4
    """Examples (groups of a policy's fit) a micro-step: memory grows with it, the result changes by rounding alone."""
    gradient_accumulation_steps: int = 1
    """Micro-steps a step."""
    warmup_steps: int = 5
    lr_scheduler_type: Schedule = "linear"
    min_lr_ratio: float = 0.1
    """Where the schedule ends, as a share of the peak."""
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adapter: Literal["lora", "full"] = "lora"
    lora_r: int = 16
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    """``all-linear`` (all but the output head), or names of layers."""
    adapter_seed: int = 0
    """Seed of the fresh adapter: the same for every round, so that rounds differ by their labels alone."""
    layout: Literal["auto", "rows", "shared"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """``auto``: that of the model in memory; another one must agree with it."""
    checkpoint_seconds: float = 60.0
    """The state of a training is saved this often."""
    checkpoint_steps: int = 0
    """Also after every so many steps; 0 = by time alone."""

    @property
    def deciding(self) -> dict[str, str]:
        """Return all that decides a result, for the hash of a training's inputs."""
        free = {"checkpoint_seconds", "checkpoint_steps"}
        return {name: repr(value) for name, value in asdict(self).items() if name not in free}

    @property
    def examples_a_step(self) -> int:
        """Return the examples of one optimiser step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def count_steps(self, examples: int) -> int:
        """Return the optimiser steps: ``max_steps`` where it is positive, else those of the epochs."""
        if self.max_steps > 0:
            return self.max_steps
        return max(1, math.ceil(self.num_train_epochs * math.ceil(examples / self.examples_a_step)))


def plan_steps(
    lengths: Sequence[int], settings: TrainingSettings, generators: Iterable[np.random.Generator], *,
    steps: int | None = None, window: int = WINDOW,
) -> list[list[int]]:  # fmt: skip
    """Return the numbers of the examples of each of ``steps`` steps (none: those of the settings).

    Every epoch has its own of ``generators``: it shuffles the examples, sorts them by length within windows of so many
    steps, cuts them into steps and shuffles those; the last step of an epoch may be short.
    """
    size, count = settings.examples_a_step, settings.count_steps(len(lengths)) if steps is None else steps
    planned: list[list[int]] = []
    for generator in generators:
        order = generator.permutation(len(lengths))
        cut: list[list[int]] = []
        for start in range(0, len(order), size * window):
            part = order[start : start + size * window]
            part = part[np.argsort(np.asarray(lengths)[part], kind="stable")]
            cut += [part[i : i + size].tolist() for i in range(0, len(part), size)]
        planned += [cut[i] for i in generator.permutation(len(cut))]
        if len(planned) >= count:
            break
    return planned[:count]


def keyed_generators(seed: int) -> Iterable[np.random.Generator]:
    """Yield a generator for every epoch, keyed by (seed, epoch)."""
    return (np.random.default_rng([seed, epoch]) for epoch in itertools.count())


def rate_factor(step: int, settings: TrainingSettings, *, steps: int) -> float:
    """Return the share of the peak learning rate at ``step`` (from 0) of ``steps``.

    It rises over the warm-up as (step + 1) / (warmup_steps + 1), then falls to ``min_lr_ratio`` at the last step.
    """
    warmup, floor = settings.warmup_steps, settings.min_lr_ratio
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.lr_scheduler_type == "constant":
        return 1.0
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    fall = 1 - progress if settings.lr_scheduler_type == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return floor + (1 - floor) * fall
