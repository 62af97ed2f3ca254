"""LoRA and full score models on a tiny random language model: start, descent, and what is in the folder."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from dualign.cli.scorer import named_scorer
from dualign.data.formats.table import read_preferences
from dualign.errors import NumericalError
from dualign.scorers.fitting import training
from dualign.scorers.fitting.entry import fit_scorer, scored
from dualign.scorers.fitting.inputs import FitConfig, pairs_of
from dualign.scorers.fitting.linear import OBJECTIVES
from dualign.scorers.score_model import ScoreModel
from dualign.scorers.table import make_scorer
from dualign.train import loop
from dualign.train.loop import Moment, accumulate
from fitting_parts import safety_rows, tiny_model, write_rows

LOG2 = math.log(2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    write_rows(folder / "rows.jsonl", safety_rows(180))
    tiny_model(folder / "model", layers=2)
    return folder


def config(path="lora", **changes):
    rates = {"learning_rate": 0.01, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    plain = {"kind": "cost", "data": {"files": ["rows.jsonl"]}, "path": path, "model": "model", "dtype": "float32"}
    return FitConfig(**plain | {"training": {**rates, "num_train_epochs": 8.0, "lora_r": 8}} | changes)


def encoded(data, chosen):
    pairs = pairs_of(read_preferences(data / "rows.jsonl").rows, chosen.kind).pairs
    model = training.load_backbone(chosen, data)
    return pairs, model, training.encode(pairs, chosen, model.tokenizer)


@pytest.mark.parametrize("path", ["lora", "full"])
def test_training_starts_at_equal_scores_and_learns(data, tmp_path, path):
    report = fit_scorer(config(path), data, tmp_path / path, lambda _: None)
    assert report["fit"]["first_loss"] == pytest.approx(3 * LOG2, abs=1e-6)
    assert report["fit"]["last_loss"] < 1.4
    assert report["held_out"]["accuracy"]["low"] > 0.5
    assert report["scorer"]["kind"] == "score-checkpoint"


def test_a_reward_starts_at_log_two(data, tmp_path):
    settings = {"num_train_epochs": 0.1, "per_device_train_batch_size": 4}
    report = fit_scorer(config(kind="reward", training=settings), data, tmp_path / "reward", lambda _: None)
    assert report["fit"]["first_loss"] == pytest.approx(LOG2, abs=1e-6)


def test_a_trained_scorer_can_be_moved_with_its_folder(data, tmp_path):
    settings = {"num_train_epochs": 0.1, "per_device_train_batch_size": 4}
    report = fit_scorer(config(training=settings), data, tmp_path / "cost", lambda _: None)
    (tmp_path / "cost").rename(tmp_path / "moved")
    moved = named_scorer(str(tmp_path / "moved"), direction="cost", default="cost").build()
    assert moved.revision == report["revision"]


@pytest.mark.parametrize("path", ["lora", "full"])
def test_the_folder_holds_the_model_that_was_trained(data, tmp_path, path):
    chosen = config(path, training={"learning_rate": 0.02, "num_train_epochs": 1.0, "lora_r": 4})
    pairs, model, tokens = encoded(data, chosen)
    _, head = training.fit_score_model(
        model, tokens, chosen, objective="pairs-and-signs", folder=tmp_path / "training", tell=lambda _: None
    )
    training.export(chosen, data, tmp_path / "training", head, tmp_path / "model")
    scorer = make_scorer(
        {"kind": "score-checkpoint", "model": str(tmp_path / "model"), "template": "plain"}, direction="cost"
    )
    from dualign.models.adapters import activated
    from dualign.protocols import Policy

    with activated(model, Policy("trained", str(tmp_path / "training"))) as active, torch.no_grad():
        live = ScoreModel(active.base_model, head[training.HEAD_WEIGHT], head[training.HEAD_BIAS], None)
        batch = training.score_micro_batch(tokens[:9], 9, model.device)
        higher, lower = live.end_scores(*batch.tokens, "cost")[:, 0][batch.places]
    saved = scored(scorer, pairs[:9])
    assert saved[0] == pytest.approx(higher.numpy(), abs=1e-4)
    assert saved[1] == pytest.approx(lower.numpy(), abs=1e-4)
    assert np.ptp(saved[0]) > 0.05


def test_the_base_model_is_as_it_was_after_training(data, tmp_path):
    chosen = config(training={"learning_rate": 0.02, "num_train_epochs": 0.3, "lora_r": 4})
    _, model, tokens = encoded(data, chosen)
    ids = torch.tensor([tokens[0].higher])
    with torch.no_grad():
        before = model.model(input_ids=ids).logits
    training.fit_score_model(model, tokens, chosen, objective="pairs", folder=tmp_path, tell=lambda _: None)
    with torch.no_grad():
        assert torch.equal(model.model(input_ids=ids).logits, before)


@pytest.mark.parametrize("size", [1, 3, 10])
def test_micro_batches_change_rounding_alone(data, size):
    chosen = config(regularisation=0.1)
    _, model, tokens = encoded(data, chosen)
    task = training.score_task(model, tokens, chosen, objective="pairs-and-signs")
    generator = torch.Generator().manual_seed(0)
    gradients, values = [], []
    for micro in (10, size):
        module = training.ScoredModel(model)
        module.head_weight.data = torch.randn(1, 24, generator=generator.manual_seed(0))
        parts = [task.collate(range(10)[i : i + micro], range(10)) for i in range(0, 10, micro)]
        values.append(accumulate(module, task.losses, parts, Moment("fit", 0, 0, 1, 0.0))["loss"])
        gradients.append(module.head_weight.grad)
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_stops(data, tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "pairs", lambda **_: lambda higher, lower, *_: (higher - lower) / 0)
    chosen = config()
    _, model, tokens = encoded(data, chosen)
    with pytest.raises(NumericalError, match="lower learning_rate"):
        training.fit_score_model(model, tokens, chosen, objective="pairs", folder=tmp_path, tell=lambda _: None)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_leaves_the_model_as_it_was(data, tmp_path, monkeypatch, where):
    chosen = config("full", training={"num_train_epochs": 1.0})
    _, model, tokens = encoded(data, chosen)
    before = [p.detach().clone() for p in model.model.parameters()]
    calls, real = [], OBJECTIVES["pairs"](regularisation=0.1)

    def poisoned(higher, lower, *signs):
        calls.append(len(higher))
        losses = real(higher, lower, *signs)
        if len(calls) < 4:
            return losses
        return losses * torch.nan if where == "loss" else torch.sqrt(losses * 0)

    monkeypatch.setitem(OBJECTIVES, "pairs", lambda **_: poisoned)
    with pytest.raises(NumericalError, match="not applied"):
        training.fit_score_model(model, tokens, chosen, objective="pairs", folder=tmp_path, tell=lambda _: None)
    assert len(calls) >= 4
    assert all(torch.equal(p, kept) for p, kept in zip(model.model.parameters(), before, strict=True))


class Killed(Exception):
    """Stands for SIGKILL: nothing after it runs but the unwinding."""


@pytest.mark.parametrize("path", ["lora", "full"])
def test_a_fit_that_was_killed_goes_on_to_the_same_bits(data, tmp_path, monkeypatch, path):
    from safetensors.torch import load_file

    chosen = config(path, training={"num_train_epochs": 1.0, "per_device_train_batch_size": 8, "lora_r": 4})
    real = training.training_settings
    monkeypatch.setattr(training, "training_settings", lambda c: dataclasses.replace(real(c), checkpoint_steps=2))
    step, done, told = loop.step, [], []

    def fitted(name, dying_at=None):
        def counted(task, optimiser, number):
            if number == dying_at:
                raise Killed
            done.append(number)
            return step(task, optimiser, number)

        monkeypatch.setattr(loop, "step", counted)
        _, model, tokens = encoded(data, chosen)
        tokens = tokens[:88]
        report, head = training.fit_score_model(
            model, tokens, chosen, objective="pairs-and-signs", folder=tmp_path / name, tell=told.append
        )
        (file,) = (tmp_path / name).glob("*model.safetensors")
        return report, {**load_file(file), **head}

    whole, weights = fitted("whole")
    with pytest.raises(Killed):
        fitted("cut", dying_at=3)
    done.clear()
    cut, again = fitted("cut")
    assert done == list(range(2, whole["steps"])) and len(done) > 1
    assert cut["losses"] == whole["losses"]
    assert all(torch.equal(again[name], value) for name, value in weights.items()) and again.keys() == weights.keys()
    assert not (tmp_path / "cut" / "checkpoint").exists()
