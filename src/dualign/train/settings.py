"""How a policy is fitted, and all that decides a fit besides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dualign.models.pair_store import StoredGroup
from dualign.protocols import Objective, Policy
from dualign.records import FloatArray
from dualign.train.optimiser import Schedule


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a policy is fitted; names follow Hugging Face where the meaning is the same."""

    learning_rate: float = 4e-4
    """Peak rate."""
    num_train_epochs: float = 1.0
    """Passes over the groups; not read when ``max_steps`` is positive."""
    max_steps: int = -1
    """Optimiser steps, if positive."""
    per_device_train_batch_size: int = 4
    """Groups a micro-step: memory grows with it, the result does not change but for rounding."""
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
    """A fit saves its state this often."""
    checkpoint_steps: int = 0
    """Also after every so many steps; 0 = by time alone."""

    @property
    def groups_a_step(self) -> int:
        """Return the groups of one optimiser step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


@dataclass(frozen=True, slots=True)
class FitInputs:
    """All that decides a fit, besides the settings and the model."""

    groups: Sequence[StoredGroup]
    """Groups that have a pair."""
    reference_log_probs: Sequence[FloatArray]
    """One ``[response]`` a group."""
    objective: Objective
    start: Policy
    """Its weights are copied; without weights a fresh adapter, or the base model for full weights."""
    seed: int
    layout: str
    """``rows`` or ``shared``."""
