"""The one loop: one backward pass in the tree, one forward of one module for every objective, and steps by hand."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import dualign
from dualign.errors import NumericalError
from dualign.maths.losses import dpo, soft
from dualign.models.language_model import LanguageModel
from dualign.models.pair_store import build_store
from dualign.protocols import Objective, OnPolicyObjective, OnPolicyTraining, Policy, Scores
from dualign.records import Response
from dualign.scorers.fitting.inputs import FitConfig
from dualign.scorers.fitting.training import EncodedPair, score_task
from dualign.train.loop import Moment, Task, Terms, accumulate, late_loss, run, step
from dualign.train.on_policy import ActorCritic, Stage, answer_losses, answer_parts
from dualign.train.optimiser import Checkpoints, Optimiser
from dualign.train.pairs import FitInputs, pair_task
from dualign.train.settings import TrainingSettings, keyed_generators, plan_steps, rate_factor
from dualign.train.sft import sft_task
from dualign.train.weights import trained_weights
from engine_parts import groups, language_model

SOURCE = Path(dualign.__file__).parent
BASE = Policy("base")
SETTINGS = TrainingSettings(lora_r=4, per_device_train_batch_size=2, gradient_accumulation_steps=2, warmup_steps=0)


def test_there_is_one_backward_pass() -> None:
    calls = [path.name for path in SOURCE.rglob("*.py") for _ in re.findall(r"\.backward\(", path.read_text())]
    assert calls == ["loop.py"]


def pairs(model: LanguageModel) -> Task:
    objective = Objective(lambda a, b: dpo(a.log_ratio, b.log_ratio, beta=0.5), soft, np.zeros(1), 0.5)
    stored = build_store(model, groups(4)).groups
    return pair_task(model, FitInputs(stored, [np.zeros(3) for _ in stored], objective, BASE, 0, "rows"), SETTINGS)


def next_tokens(model: LanguageModel) -> Task:
    return sft_task(model, [((2, 5, 6), (7, 1)), ((2, 9), (8, 8, 1)), ((2,), (9, 1)), ((2, 4), (4, 1))], SETTINGS, 0)


def scores(model: LanguageModel) -> Task:
    config = FitConfig.model_validate({"kind": "cost", "data": {"files": ["none"]}, "path": "lora", "model": "none"})
    made = [EncodedPair((2, 5 + k, 1), (2, 6 + k, 7, 1), 1.0, -1.0) for k in range(4)]
    task = score_task(model, made, config, objective="pairs-and-signs")
    return dataclasses.replace(task, settings=SETTINGS)


def answers(model: LanguageModel) -> Task:
    settings = dataclasses.replace(SETTINGS, per_device_train_batch_size=1)
    stage = Stage(model, None, None, settings, None, BASE)  # type: ignore[arg-type]
    asked = [group.prompt for group in groups(4)]
    responses = [[Response("", (5 + k, 6, 1)), Response("", (7, 1))] for k in range(4)]
    given = Scores(np.arange(8.0).reshape(4, 2), np.ones((4, 2, 1)), np.ones((4, 1), dtype=bool))
    parts = answer_parts(stage, asked, responses, given)
    objective = OnPolicyObjective(multipliers=np.ones(1), kl=0.1)
    training = OnPolicyTraining(
        method="test", estimator="critic", aim=lambda _: objective, follow=lambda m, *_: m, multipliers=np.ones(1),
        cost_units=np.ones(1), settings={"clip": 0.2},
    )  # fmt: skip

    def losses(said: Any, part: Any) -> Terms:
        return answer_losses(said, part, objective, training)

    module = ActorCritic(model, np.zeros(2))
    return Task("training", module, [range(len(parts))], lambda chosen, _: parts[chosen[0]], losses, settings, 0)


KINDS = {"pairs": pairs, "next tokens": next_tokens, "scores": scores, "answers": answers}


class Wrapped(nn.Module):
    """Stands for whatever wraps a model: it sees calls of ``forward`` and nothing else."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = module, 0

    def forward(self, tokens: Any) -> Any:
        self.calls += 1
        return self.inner(tokens)


def gradients(model: LanguageModel, task: Task, module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the gradients of the first step through ``module``, by the names of the task's own module."""
    task.module.zero_grad(set_to_none=True)
    chosen, size = task.plan[0], task.settings.per_device_train_batch_size
    parts = [task.collate(chosen[i : i + size], chosen) for i in range(0, len(chosen), size)]
    accumulate(module, task.losses, parts, Moment("test", 0, 0, 1, 0.0))
    assert len(parts) > 1
    return {name: p.grad.clone() for name, p in task.module.named_parameters() if p.grad is not None}


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_goes_through_one_forward(kind: str, one_process: None) -> None:
    model = language_model()
    with trained_weights(model, BASE, SETTINGS):
        task = KINDS[kind](model)
        plain = gradients(model, task, task.module)
        wrapped = Wrapped(task.module)
        assert wrapped.calls == 0
        seen = gradients(model, task, wrapped)
        assert wrapped.calls == -(-len(task.plan[0]) // task.settings.per_device_train_batch_size)
        spread = gradients(model, task, DistributedDataParallel(task.module))
    assert plain and plain.keys() == seen.keys() == spread.keys()
    for name, value in plain.items():
        assert torch.equal(value, seen[name]) and torch.allclose(value, spread[name], rtol=1e-6, atol=1e-12)


class Slope(nn.Module):
    """One weight ``w`` and an input ``x``: w x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.w * tokens


@dataclasses.dataclass(frozen=True)
class Inputs:
    tokens: torch.Tensor


DATA = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)


def slope_task(**changes: Any) -> Task:
    """Return the task of the weighted mean of (w x)^2 with weights 1 to 4 over 10, two examples a micro-batch."""

    def losses(output: torch.Tensor, batch: Inputs) -> Terms:
        return Terms(output**2, batch.tokens, 10.0, {"seen": float(len(batch.tokens))})

    settings = dataclasses.replace(SETTINGS, lr_scheduler_type="constant", learning_rate=0.1, max_grad_norm=100.0)
    task = Task("test", Slope(), [range(4)] * 3, lambda chosen, _: Inputs(DATA[list(chosen)]), losses, settings, 0)
    return dataclasses.replace(task, **changes)


def weight(task: Task) -> float:
    return next(task.module.parameters()).item()


def test_a_step_is_the_weighted_sum_over_its_micro_batches() -> None:
    task = slope_task()
    optimiser = Optimiser.of(dict(task.module.named_parameters()), task.settings)
    row = step(task, optimiser, 0)
    # sum x (w x)^2 / 10 = w^2 (1 + 8 + 27 + 64) / 10 = 40 at w = 2, with slope 2 w 10 = 40
    assert list(row) == ["step", "loss", "gradient_norm", "learning_rate", "seen"]
    assert list(row.values()) == pytest.approx([1, 40.0, 40.0, 0.1, 4.0])
    # Adam's first step is the learning rate, whatever the slope's size
    assert weight(task) == pytest.approx(2.0 - 0.1, abs=1e-6)


def test_weights_of_the_whole_step_are_given_all_its_losses() -> None:
    seen = []

    def weigh(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        seen.append((losses.tolist(), weights.tolist(), losses.requires_grad))
        return 10 * torch.eye(4, dtype=torch.float64)[3]

    task = slope_task(weigh=weigh)
    row = step(task, Optimiser.of(dict(task.module.named_parameters()), task.settings), 0)
    assert seen == [([4.0, 16.0, 36.0, 64.0], [1.0, 2.0, 3.0, 4.0], False)]
    assert row["loss"] == 64.0


def test_nothing_of_a_step_is_applied_when_its_second_micro_batch_is_not_finite() -> None:
    task = slope_task(collate=lambda chosen, _: Inputs(DATA[list(chosen)] if 0 in chosen else DATA[2:] / 0))
    optimiser = Optimiser.of(dict(task.module.named_parameters()), task.settings)
    with pytest.raises(NumericalError, match="test: the loss is inf at step 1 of 3; the step was not applied"):
        step(task, optimiser, 0)
    assert weight(task) == 2.0 and not optimiser.adamw.state


def test_rows_are_told_as_they_come_and_a_costly_checkpoint_waits(tmp_path: Path, monkeypatch: Any) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    saved: list[int] = []

    class Slow(Checkpoints):
        def save(self, checkpoint: Any) -> None:
            saved.append(len(checkpoint.history))
            clock[0] += 30.0

    def told(history: Any) -> None:
        clock[0] += 60.0

    task = slope_task(plan=[range(4)] * 20)
    optimiser = Optimiser.of(dict(task.module.named_parameters()), task.settings)
    history = run(task, optimiser, Slow(tmp_path, "key"), tell=print, after_step=told)
    # after a minute, and then when twenty times the half minute that it took have passed
    assert saved == [2, 12] and len(history) == 20
    assert late_loss(history) == pytest.approx(np.mean([row["loss"] for row in history[-5:]]))


def test_a_plan_uses_every_example_once_an_epoch_by_the_seed_and_rates_end_at_the_floor() -> None:
    def plan(seed: int) -> list[list[int]]:
        settings = TrainingSettings(per_device_train_batch_size=4, num_train_epochs=2.0)
        return plan_steps([7] * 10, settings, keyed_generators(seed))

    assert [len(chosen) for chosen in sorted(plan(0)[:3], key=len)] == [2, 4, 4]
    for epoch in (plan(0)[:3], plan(0)[3:]):
        assert sorted(number for chosen in epoch for number in chosen) == list(range(10))
    assert plan(0) == plan(0) != plan(1) and plan(0)[:3] != plan(0)[3:]
    settings = TrainingSettings(warmup_steps=1, min_lr_ratio=0.25, lr_scheduler_type="cosine")
    assert [rate_factor(k, settings, steps=4) for k in range(4)] == pytest.approx([0.5, 1.0, 0.625, 0.25])
