"""Supervised fine-tuning: the loss is the token mean it says, and it learns."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from dualign.errors import DataError, NumericalError, UsageError
from dualign.models.log_probs import PairScorer
from dualign.records import Prompt
from dualign.train import loop, sft
from dualign.train.settings import rate_factor
from dualign.train.sft import SftSettings, fine_tune, next_token, token_micro_batch, training_settings
from sampling_parts import EOS, PROMPTS, WORDS, tiny_language_model, tiny_model

FULL = SftSettings(learning_rate=1e-2, num_train_epochs=40, per_device_train_batch_size=4, lora_r=0)
EXAMPLES = [(Prompt(a), (3 + i, 4 + i, EOS)) for i, a in enumerate("abcdef")]


def token_losses(model, rows):
    batch = token_micro_batch(model, rows, range(len(rows)), range(len(rows)))
    return next_token(PairScorer(model)(batch.tokens), batch).losses


def fit(model, examples=EXAMPLES, settings=FULL, seed=0, folder=None):
    return fine_tune(model, examples, settings=settings, seed=seed, folder=folder)


def test_uniform_logits_give_log_v():
    model = tiny_language_model(temperature=0.7)
    torch.nn.init.zeros_(model.model.lm_head.weight)
    batch = [([1, 3, 4], (5, EOS)), ([1], (6, 7, 8, EOS))]
    assert token_losses(model, batch).tolist() == pytest.approx([math.log(len(WORDS))] * 6)
    two = torch.zeros(2, len(WORDS), dtype=torch.bool)
    two[:, [5, 6, 7, 8, EOS]] = True
    masked = tiny_language_model(model=model.model, grammar=two)
    assert token_losses(masked, batch).tolist() == pytest.approx([math.log(5)] * 6)
    # the loss of a step is the mean over its responses' tokens, whatever their prompts' lengths
    assert fit(model).first_loss == pytest.approx(math.log(len(WORDS)))


def test_losses_are_those_of_plain_forward_passes_whatever_the_padding():
    model = tiny_language_model(temperature=0.7)
    rows = [([1, 3, 4, 5, 6], (5, EOS)), ([1], (6, 7, 8, 9, EOS)), ([1, 3], (EOS,))]
    expected = []
    for prompt, response in rows:
        logits = model.model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1] / 0.7
        expected += (-torch.log_softmax(logits, dim=1)[range(len(response)), list(response)]).tolist()
    assert len(expected) == 8  # EOS counts, prompts do not
    assert token_losses(model, rows).tolist() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("rank", [0, 8])
def test_learns_a_mapping(rank):
    model = tiny_language_model(model=tiny_model(scale=0.3))
    report = fit(model, settings=SftSettings(learning_rate=2e-2, num_train_epochs=90, lora_r=rank))
    assert report.last_loss < 0.2 < 1.5 < report.first_loss
    with torch.no_grad():
        rows = [(model.template(p), r) for p, r in EXAMPLES]
        assert float(token_losses(model, rows).mean()) < 0.2  # merged: the base weights hold it
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    assert not any(".lora_" in name and "trained" in name for name, _ in model.model.named_parameters())


def test_accumulation_equals_the_full_batch():
    examples = [(p, tuple([3] * i) + (EOS,)) for i, p in enumerate(PROMPTS)]
    weights = []
    for size, parts in ((6, 1), (2, 3)):
        model = tiny_language_model()
        settings = SftSettings(
            per_device_train_batch_size=size, gradient_accumulation_steps=parts, num_train_epochs=3, lora_r=0
        )
        report = fit(model, examples, settings)
        assert len(report.losses) == 3 and report.tokens == 3 * 21
        weights.append(model.model.lm_head.weight.detach().numpy())
    assert np.abs(weights[0] - weights[1]).max() < 1e-9


def test_seeds():
    settings = SftSettings(num_train_epochs=2, per_device_train_batch_size=2)
    losses = [fit(tiny_language_model(), settings=settings, seed=seed).losses for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    chosen, encoded = training_settings(settings, 7), [([1], (3, EOS))] * 18
    plans = [sft.sft_task(tiny_language_model(), encoded, chosen, seed).plan for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2] and chosen.adapter_seed == 7


def test_saved_model_is_read_by_plain_transformers(tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny_language_model()
    before = model.revision
    report = fit(model, settings=SftSettings(num_train_epochs=2), folder=tmp_path / "fitted")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "fitted", dtype=torch.float64)
    ids = torch.tensor([[1, 3, 4, 5]])
    assert torch.equal(again(ids).logits, model.model(ids).logits)
    assert report.revision != before
    assert not list((tmp_path / "fitted").glob("*.bin"))


def test_nan_stops_before_the_step():
    model = tiny_language_model()
    model.model.lm_head.weight.data[3] = torch.nan
    embedding = model.model.model.embed_tokens.weight.clone()
    with pytest.raises(NumericalError, match="step 1 of"):
        fit(model)
    assert torch.equal(model.model.model.embed_tokens.weight, embedding)


def vector(model):
    return torch.cat([p.detach().double().flatten() for p in model.model.parameters()])


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("rank", [0, 4])
def test_what_is_not_finite_leaves_the_weights_as_they_were(rank, where, monkeypatch):
    model, applied = tiny_language_model(), []

    def poisoned(reading, batch):
        terms = next_token(reading, batch)
        if len(applied) < 3:
            return terms
        losses = terms.losses * torch.nan if where == "loss" else torch.sqrt(terms.losses * 0)
        return dataclasses.replace(terms, losses=losses)

    step = loop.step
    monkeypatch.setattr(sft, "next_token", poisoned)
    monkeypatch.setattr(loop, "step", lambda *given: applied.append(step(*given)) or applied[-1])
    before = vector(model)
    with pytest.raises(NumericalError, match="not applied"):
        fit(model, settings=SftSettings(num_train_epochs=9, learning_rate=1e-2, lora_r=rank))
    assert len(applied) == 3 and torch.equal(vector(model), before)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.model.parameters())


class Killed(Exception):
    """Stands for SIGKILL: nothing after it runs but the unwinding."""


SHORT = SftSettings(num_train_epochs=4, per_device_train_batch_size=2, gradient_accumulation_steps=2, warmup_steps=1)


def killed_after(steps, folder, monkeypatch, rank=4):
    """Leave a fine-tuning of six steps, with a checkpoint after every second, that was killed after so many."""
    often = lambda settings, seed: dataclasses.replace(training_settings(settings, seed), checkpoint_steps=2)  # noqa: E731
    monkeypatch.setattr(sft, "training_settings", often)
    step = loop.step

    def dying(task, optimiser, number):
        if number == steps:
            raise Killed
        return step(task, optimiser, number)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", dying)
        with pytest.raises(Killed):
            fit(tiny_language_model(), settings=dataclasses.replace(SHORT, lora_r=rank), folder=folder)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("after", [4, 5])
def test_a_fine_tuning_that_was_killed_goes_on_to_the_same_bits(after, rank, tmp_path, monkeypatch):
    settings = dataclasses.replace(SHORT, lora_r=rank)
    whole = fit(tiny_language_model(), settings=settings, folder=tmp_path / "whole")
    killed_after(after, tmp_path / "cut", monkeypatch, rank)
    done, step = [], loop.step
    monkeypatch.setattr(loop, "step", lambda *given: (done.append(given[-1]), step(*given))[1])
    cut = fit(tiny_language_model(), settings=settings, folder=tmp_path / "cut")
    assert done == [4, 5]
    assert (cut.losses, cut.tokens, cut.revision) == (whole.losses, whole.tokens, whole.revision)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "cut")]
    assert files[0] == files[1]


@pytest.mark.parametrize("change", ["seed", "example"])
def test_a_checkpoint_of_other_inputs_is_ignored_and_named(change, tmp_path, monkeypatch):
    killed_after(5, tmp_path / "cut", monkeypatch)
    seed, examples = (1, EXAMPLES) if change == "seed" else (0, EXAMPLES[::-1])
    cut = fit(tiny_language_model(), examples, settings=dataclasses.replace(SHORT, lora_r=4), seed=seed,
              folder=tmp_path / "cut")  # fmt: skip
    whole = fit(tiny_language_model(), examples, settings=dataclasses.replace(SHORT, lora_r=4), seed=seed)
    assert cut.revision == whole.revision and "checkpoint of other inputs is ignored" in cut.notes[0]


def test_mistakes():
    model = tiny_language_model(max_response_tokens=2)
    with pytest.raises(DataError, match="no example"):
        fit(model, [])
    with pytest.raises(DataError, match="no token"):
        fit(model, [(PROMPTS[0], ())])
    with pytest.raises(DataError, match="response has 3 tokens, at most 2"):
        fit(model)
    with pytest.raises(UsageError, match="learning_rate"):
        fit(model, settings=SftSettings(learning_rate=0))
    only = torch.zeros(1, len(WORDS), dtype=torch.bool)
    only[0, EOS] = True
    with pytest.raises(DataError, match="grammar forbids"):
        fit(tiny_language_model(grammar=only))


def test_plan_uses_every_example_once_an_epoch():
    settings = SftSettings(num_train_epochs=2, per_device_train_batch_size=3, gradient_accumulation_steps=2)
    encoded = [([1] * (1 + k), (3, EOS)) for k in range(18)]
    task = sft.sft_task(tiny_language_model(), encoded, training_settings(settings, 0), 0)
    assert len(task.plan) == 6 and all(len(step) == 6 for step in task.plan)
    for epoch in (task.plan[:3], task.plan[3:]):
        assert sorted(i for step in epoch for i in step) == list(range(18))
    # six steps fall by 0.9 / 5 each, and the last one has the floor
    chosen = dataclasses.replace(task.settings, warmup_steps=0)
    rates = [rate_factor(step, chosen, steps=len(task.plan)) for step in range(6)]
    assert rates == pytest.approx([1, 0.82, 0.64, 0.46, 0.28, 0.1])


def test_schedule():
    settings = SftSettings(warmup_steps=4, min_lr_ratio=0.1)
    shares = [rate_factor(step, training_settings(settings, 0), steps=14) for step in range(14)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[4:] == pytest.approx([1 - 0.9 * k / 9 for k in range(10)])  # at the floor in the last step


RATE = 2e-5
"""A full fine-tuning's rate: a bfloat16 weight of .02 or more, which keeps eight bits, does not move by it."""


def small_steps(dtype, rank, folder, **changes):
    """Return the weights before, those in memory after and those of the folder, as vectors in float64."""
    from safetensors.torch import load_file

    start = tiny_model(dtype="bfloat16", scale=0.1)  # the very same start in both dtypes
    model = tiny_language_model(model=start.to(getattr(torch, dtype)))
    before = {name: p.detach().double().clone() for name, p in model.model.named_parameters()}
    settings = SftSettings(learning_rate=RATE, num_train_epochs=24, per_device_train_batch_size=3, warmup_steps=0,
                           lora_r=rank, **changes)  # fmt: skip
    fit(model, settings=settings, folder=folder)
    held = {name.replace(".base_layer", ""): p.detach().double() for name, p in model.model.named_parameters()}
    kept = {name: value for name, value in load_file(folder / "model.safetensors").items()}
    assert {value.dtype for value in kept.values()} == {torch.float32}
    return [torch.cat([w[name].double().flatten() for name in before]) for w in (before, held, kept)]


@pytest.mark.parametrize("rank", [0, 8])
def test_bfloat16_moves_weights_as_float32_does(rank, tmp_path):
    moves = []
    for dtype in ("float32", "bfloat16"):
        before, held, kept = small_steps(dtype, rank, tmp_path / dtype)
        assert torch.equal(held, kept.to(getattr(torch, dtype)).double())  # memory holds what was kept, rounded once
        moves.append(kept - before)
    lengths = [float(move.norm()) for move in moves]
    assert lengths[1] == pytest.approx(lengths[0], rel=0.01)
    assert float(moves[0] @ moves[1]) / lengths[0] / lengths[1] > 0.99
    if rank == 0:  # all move, by about a step a step, though memory in bfloat16 shows few of it
        assert float((moves[1].abs() > RATE).double().mean()) > 0.95


def test_a_config_says_what_the_weights_are_kept_in(tmp_path):
    import json

    model = tiny_language_model(model=tiny_model(dtype="bfloat16"))
    fit(model, settings=SftSettings(num_train_epochs=1), folder=tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    assert model.model.config.dtype is None  # the copy was changed, not the model's own


def test_a_share_of_two_models_is_rounded_once():
    from dualign.models.adapters import mixed

    # a share of a model and the rest of the same model are that model; rounded one by one they are not
    same = torch.linspace(0.5, 3, 400).bfloat16()
    assert not torch.equal((1 - 0.3) * same + 0.3 * same, same)
    assert torch.equal(mixed(same, same, 0.3), same)
