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
from dualign.models.log_probs import Reading
from dualign.models.pair_store import stored_groups
from dualign.protocols import Objective, OnPolicyObjective, OnPolicyTraining, Policy, Scores
from dualign.records import Response
from dualign.scorers.fitting.inputs import FitConfig
from dualign.scorers.fitting.training import EncodedPair, score_task
from dualign.train.loop import Checkpoint, Checkpoints, Moment, Optimiser, Task, Terms, accumulate, late_loss, run, step
from dualign.train.on_policy import ActorCritic, Stage, answer_losses, answer_parts
from dualign.train.pairs import FitInputs, pair_task
from dualign.train.settings import TrainingSettings, keyed_generators, plan_steps, rate_factor
from dualign.train.sft import sft_task
from dualign.train.weights import save_policy, trained_weights
from engine_parts import groups, language_model

SOURCE = Path(dualign.__file__).parent
BASE = Policy("base")
SETTINGS = TrainingSettings(lora_r=4, per_device_train_batch_size=2, gradient_accumulation_steps=2, warmup_steps=0)


def test_there_is_one_backward_pass() -> None:
    calls = [path.name for path in SOURCE.rglob("*.py") for _ in re.findall(r"\.backward\(", path.read_text())]
    assert calls == ["loop.py"]


def pairs(model: LanguageModel) -> Task:
    objective = Objective(lambda a, b: dpo(a.log_ratio, b.log_ratio, beta=0.5), soft, np.zeros(1), 0.5)
    stored = stored_groups(model, groups(4))
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
    optimiser = Optimiser(dict(task.module.named_parameters()), task.settings)
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
    row = step(task, Optimiser(dict(task.module.named_parameters()), task.settings), 0)
    assert seen == [([4.0, 16.0, 36.0, 64.0], [1.0, 2.0, 3.0, 4.0], False)]
    assert row["loss"] == 64.0


def test_nothing_of_a_step_is_applied_when_its_second_micro_batch_is_not_finite() -> None:
    task = slope_task(collate=lambda chosen, _: Inputs(DATA[list(chosen)] if 0 in chosen else DATA[2:] / 0))
    optimiser = Optimiser(dict(task.module.named_parameters()), task.settings)
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
    optimiser = Optimiser(dict(task.module.named_parameters()), task.settings)
    history = run(task, optimiser, Slow(tmp_path, "key"), tell=print, after_step=told)
    # after a minute, and then when twenty times the half minute that it took have passed
    assert saved == [2, 12] and len(history) == 20
    assert late_loss(history) == pytest.approx(np.mean([row["loss"] for row in history[-5:]]))


def test_a_run_that_was_killed_goes_on_behind_its_last_checkpoint(tmp_path: Path) -> None:
    settings = dataclasses.replace(slope_task().settings, checkpoint_steps=2)

    def ran(folder: Path, dies_at: int = 0) -> tuple[list[Any], float]:
        def told(history: Any) -> None:
            if len(history) == dies_at:
                raise KeyboardInterrupt

        task = slope_task(settings=settings, plan=[range(4)] * 5)
        optimiser = Optimiser(dict(task.module.named_parameters()), settings)
        history = run(task, optimiser, Checkpoints(folder, "key"), tell=print, after_step=told)
        return history, weight(task)

    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path / "cut", 3)
    whole = ran(tmp_path / "whole")
    assert ran(tmp_path / "cut") == whole and [row["step"] for row in whole[0]] == [1, 2, 3, 4, 5]


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


def test_two_steps_of_the_optimiser_by_hand() -> None:
    matrix, bias = (torch.full(shape, 2.0, dtype=torch.float64, requires_grad=True) for shape in ((1, 1), (1,)))
    settings = TrainingSettings(adam_beta1=0.5, adam_beta2=0.75, weight_decay=0.1)
    optimiser, norms = Optimiser({"matrix": matrix, "bias": bias}, settings), []
    for size in (1.0, 0.1):
        matrix.grad, bias.grad = torch.full((1, 1), 3 * size).double(), torch.full((1,), 4 * size).double()
        norms.append(optimiser.step(learning_rate=0.1, max_grad_norm=1.0))
        assert matrix.grad is None and bias.grad is None
        if size == 1.0:
            # the first step is the rate, whatever the size; the matrix alone loses a hundredth before it
            assert (matrix.item(), bias.item()) == pytest.approx((2 * 0.99 - 0.1, 2 - 0.1), abs=1e-7)
    # gradients 3 and 4 of norm 5 were cut to 0.6 and 0.8, which then halve: means 0.4 / 0.6 of the first ones after
    # correction, squares 0.25 (0.75 + 0.25) / (1 - 0.75^2) of theirs
    ratio = (0.5 * 0.5 + 0.5 * 0.5) / (1 - 0.5**2) / np.sqrt(0.25 * (0.75 + 0.25) / (1 - 0.75**2))
    assert norms == pytest.approx([5.0, 0.5])
    assert matrix.item() == pytest.approx((2 * 0.99 - 0.1) * 0.99 - 0.1 * ratio, abs=1e-7)
    assert bias.item() == pytest.approx(1.9 - 0.1 * ratio, abs=1e-7)


def test_an_optimiser_goes_on_from_its_state_to_the_same_bits() -> None:
    def begun() -> tuple[torch.Tensor, Optimiser]:
        weight = torch.tensor([[1.0, 2.0]], requires_grad=True)
        return weight, Optimiser({"w": weight}, TrainingSettings())

    def moved(weight: torch.Tensor, optimiser: Optimiser, *slopes: float) -> list[float]:
        for slope in slopes:
            weight.grad = torch.tensor([[slope, -2 * slope]])
            optimiser.step(learning_rate=0.1, max_grad_norm=9.0)
        return weight.flatten().tolist()

    whole, (first, cut), (second, later) = begun(), begun(), begun()
    there = moved(first, cut, 1.0, -0.3)
    later.restore({name: value.clone() for name, value in cut.state().items()})
    assert second.flatten().tolist() == there
    assert moved(second, later, 0.7) == moved(*whole, 1.0, -0.3, 0.7)


def test_a_hundred_steps_too_small_for_bfloat16_are_not_lost() -> None:
    weight = torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
    optimiser = Optimiser({"w": weight}, TrainingSettings())
    for _ in range(100):
        weight.grad = torch.ones(1, dtype=torch.bfloat16)
        optimiser.step(learning_rate=1e-4, max_grad_norm=1.0)
    # 1 - 0.0001 is 1 in bfloat16, whose numbers below 1 are 1/256 apart: 0.99 is 253 of them
    assert optimiser.masters["w"].item() == pytest.approx(0.99, abs=1e-5) and weight.item() == 253 / 256


def test_one_checkpoint_is_kept_and_the_last_one_is_gone_on_from(tmp_path: Path) -> None:
    told: list[str] = []
    checkpoints = Checkpoints(tmp_path, "key")
    for steps in (1, 2):
        checkpoints.save(Checkpoint({"w": torch.full((1,), float(steps))}, [{"loss": 0.5}] * steps))
    assert [path.name for path in (tmp_path / "checkpoint").glob("*.safetensors")] == ["step-000002.safetensors"]
    loaded = checkpoints.load(told.append)
    assert loaded is not None and len(loaded.history) == 2 and loaded.tensors["w"].item() == 2.0
    assert Checkpoints(tmp_path, "other").load(told.append) is None
    assert len(told) == 1 and "of other inputs is ignored; the fit starts afresh" in told[0]
    (path,) = (tmp_path / "checkpoint").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\x41")  # a number is another, and the file as well formed as before
    assert checkpoints.load(told.append) is None and "damaged, so the checkpoint is ignored" in told[1]


def test_like_lengths_stand_together_and_the_steps_are_shuffled() -> None:
    settings = TrainingSettings(per_device_train_batch_size=2, gradient_accumulation_steps=2)
    plan = plan_steps(range(32), settings, keyed_generators(0))
    assert sorted(plan) == [list(range(4 * k, 4 * k + 4)) for k in range(8)] and plan != sorted(plan)
    counts = {"max_steps": 7, "num_train_epochs": 0.5}
    found = {name: dataclasses.replace(settings, **{name: value}).count_steps(10) for name, value in counts.items()}
    assert found == {"max_steps": 7, "num_train_epochs": 2}  # half of the three steps of a pass over ten


COSINE = [0.2 + 0.8 * (1 + np.cos(np.pi * k / 4)) / 2 for k in range(5)]


@pytest.mark.parametrize(
    ("kind", "rest"), [("linear", [1, 0.8, 0.6, 0.4, 0.2]), ("constant", [1] * 5), ("cosine", COSINE)]
)
def test_the_rate_rises_over_the_warm_up_and_falls_to_its_floor(kind: Any, rest: list[float]) -> None:
    settings = TrainingSettings(warmup_steps=2, min_lr_ratio=0.2, lr_scheduler_type=kind)
    assert [rate_factor(k, settings, steps=7) for k in range(7)] == pytest.approx([1 / 3, 2 / 3, *rest])


def test_all_settings_decide_but_those_of_saving() -> None:
    names = {field.name for field in dataclasses.fields(TrainingSettings)}
    assert TrainingSettings().deciding.keys() == names - {"checkpoint_seconds", "checkpoint_steps"}


def test_labels_losses_weights_and_figures_of_pairs_by_hand() -> None:
    """Two groups of weight 1 and 3, with three pairs and one; log-ratios h by the reading, labels by the scores."""
    model, multiplier, beta, temperature = language_model(), 0.5, 0.25, 2.0
    made = [dataclasses.replace(group, weight=w) for group, w in zip(groups(2), (1.0, 3.0), strict=True)]
    two = {"responses": made[1].responses[:2], "reward": made[1].reward[:2], "costs": made[1].costs[:2]}
    made[1] = dataclasses.replace(made[1], **two)
    objective = Objective(
        lambda a, b: dpo(a.log_ratio, b.log_ratio, beta=beta), soft, np.array([multiplier]), beta, temperature
    )
    reference = [np.array([-1.0, -2.0, -4.0]), np.array([-3.0, -5.0])]
    stored = stored_groups(model, made)
    task = pair_task(model, FitInputs(stored, reference, objective, BASE, 0, "rows"), SETTINGS)
    ratios = [[0.5, -0.25, 1.0], [2.0, -1.0]]
    shares = 0.0
    for k, pairs_of_it in enumerate(([(0, 1), (0, 2), (1, 2)], [(0, 1)])):
        micro = task.collate([k], [0, 1])
        said = torch.tensor(reference[k] + np.array(ratios[k]))[None]
        terms = task.losses(Reading(said, said, said, None), micro)
        products = squares = 0.0
        share, score = (0.25, 0.75)[k] / len(pairs_of_it), made[k].reward - multiplier * made[k].costs[:, 0]
        for (i, j), one, weight in zip(pairs_of_it, terms.losses.tolist(), terms.weights.tolist(), strict=True):
            margin, logit = beta * (ratios[k][i] - ratios[k][j]), (score[i] - score[j]) / temperature
            p = 1 / (1 + np.exp(-logit))
            assert one == pytest.approx(p * np.log1p(np.exp(-margin)) + (1 - p) * np.log1p(np.exp(margin)))
            assert weight == pytest.approx(share)
            shares += weight
            products, squares = products + share * margin * logit, squares + share * logit**2
        for name, wanted in {"products": products, "squares": squares}.items():
            assert float(terms.figures[name]) == pytest.approx(wanted)
    assert shares == pytest.approx(1)


class Dropping(nn.Module):
    """One weight and a dropout of ones: what is kept says which numbers were drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(64, dtype=torch.float64))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return nn.functional.dropout(self.w, 0.5)


def test_dropout_is_keyed_by_seed_step_and_micro_batch() -> None:
    def kept(seed: int, number: int) -> list[list[float]]:
        seen: list[list[float]] = []

        def losses(output: torch.Tensor, batch: Inputs) -> Terms:
            seen.append(output.tolist())
            return Terms(output.sum()[None] * batch.tokens.sum())

        settings = dataclasses.replace(SETTINGS, lora_dropout=0.5)
        task = slope_task(module=Dropping(), losses=losses, settings=settings, seed=seed)
        step(task, Optimiser(dict(task.module.named_parameters()), settings), number)
        return seen

    before = torch.get_rng_state()
    drawn = [kept(seed, number) for seed, number in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert torch.equal(torch.get_rng_state(), before) and drawn[0] == drawn[1]
    # two micro-batches of three different (seed, step): six different draws
    assert len({tuple(one) for step_of_it in drawn for one in step_of_it}) == 6


def test_the_order_of_groups_is_that_of_the_seed() -> None:
    model, objective = language_model(), Objective(lambda a, b: a.log_ratio - b.log_ratio, soft, np.zeros(1), 0.5)
    stored = stored_groups(model, groups(8))
    reference = [np.zeros(3) for _ in stored]
    plans = [
        pair_task(model, FitInputs(stored, reference, objective, BASE, seed, "rows"), SETTINGS).plan
        for seed in (0, 0, 1)
    ]
    assert plans[0] == plans[1] != plans[2]


def test_a_fresh_adapter_is_drawn_from_its_seed_and_changes_nothing() -> None:
    model = language_model()

    def fresh(seed: int) -> dict[str, torch.Tensor]:
        with trained_weights(model, BASE, dataclasses.replace(SETTINGS, adapter_seed=seed)) as parameters:
            return {name: value.detach().clone() for name, value in parameters.items()}

    one, same, other = (fresh(seed) for seed in (0, 0, 1))
    for name, value in one.items():
        assert torch.equal(value, same[name])
        if "lora_A" in name:  # uniform within 1 / sqrt(inputs)
            assert not torch.equal(value, other[name]) and 0 < value.abs().max() <= value.shape[1] ** -0.5
        else:
            assert not value.any()


def test_a_micro_batch_knows_its_whole_step_and_the_last_step_has_the_floor() -> None:
    seen: list[tuple[list[int], list[int]]] = []

    def collate(chosen: Any, whole: Any) -> Inputs:
        seen.append((list(chosen), list(whole)))
        return Inputs(DATA[list(chosen)])

    settings = dataclasses.replace(slope_task().settings, lr_scheduler_type="linear", min_lr_ratio=0.1)
    task = slope_task(settings=settings, collate=collate)
    history = run(task, Optimiser(dict(task.module.named_parameters()), settings), Checkpoints(None, ""), tell=print)
    assert seen == [([0, 1], [0, 1, 2, 3]), ([2, 3], [0, 1, 2, 3])] * 3
    assert [row["learning_rate"] for row in history] == pytest.approx([0.1, 0.055, 0.01])


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_what_is_kept_of_a_policy_is_what_the_next_training_begins_at(adapter: Any, tmp_path: Path) -> None:
    model, settings = language_model(), dataclasses.replace(SETTINGS, adapter=adapter)
    with trained_weights(model, BASE, settings) as parameters:
        for value in parameters.values():
            value.data.add_(0.125)
        masters = {name: value.detach() + (0.5 if adapter == "lora" else 0.0) for name, value in parameters.items()}
        save_policy(model, parameters, masters, settings, tmp_path)
    with trained_weights(model, Policy("p", tmp_path), settings) as parameters:
        # an adapter is kept as its masters are, which may be finer than what is computed with
        assert all(torch.equal(value, masters[name]) for name, value in parameters.items())
        assert parameters.keys() == masters.keys()
