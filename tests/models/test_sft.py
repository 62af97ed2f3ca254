"""Supervised fine-tuning: the loss is the token mean it says, and it learns."""

import math

import numpy as np
import pytest
import torch

from dualign.errors import DataError, NumericalError, UsageError
from dualign.records import Prompt
from dualign.train.sft import SftSettings, _plan, _schedule, fine_tune, make_batch, token_losses
from sampling_parts import EOS, PROMPTS, WORDS, tiny_language_model, tiny_model

FULL = SftSettings(learning_rate=1e-2, num_train_epochs=40, per_device_train_batch_size=4, lora_r=0)
EXAMPLES = [(Prompt(a), (3 + i, 4 + i, EOS)) for i, a in enumerate("abcdef")]


def fit(model, examples=EXAMPLES, settings=FULL, seed=0, folder=None):
    return fine_tune(model, examples, settings=settings, seed=seed, folder=folder)


def test_uniform_logits_give_log_v():
    model = tiny_language_model(temperature=0.7)
    torch.nn.init.zeros_(model.model.lm_head.weight)
    batch = make_batch(model, [([1, 3, 4], (5, EOS)), ([1], (6, 7, 8, EOS))])
    assert token_losses(model, batch).tolist() == pytest.approx([math.log(len(WORDS))] * 6)
    two = torch.zeros(2, len(WORDS), dtype=torch.bool)
    two[:, [5, 6, 7, 8, EOS]] = True
    masked = tiny_language_model(model=model.model, grammar=two)
    assert token_losses(masked, batch).tolist() == pytest.approx([math.log(5)] * 6)


def test_losses_are_those_of_plain_forward_passes_whatever_the_padding():
    model = tiny_language_model(temperature=0.7)
    rows = [([1, 3, 4, 5, 6], (5, EOS)), ([1], (6, 7, 8, 9, EOS)), ([1, 3], (EOS,))]
    expected = []
    for prompt, response in rows:
        logits = model.model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1] / 0.7
        expected += (-torch.log_softmax(logits, dim=1)[range(len(response)), list(response)]).tolist()
    assert len(expected) == 8  # EOS counts, prompts do not
    assert token_losses(model, make_batch(model, rows)).tolist() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("rank", [0, 8])
def test_learns_a_mapping(rank):
    model = tiny_language_model(model=tiny_model(scale=0.3))
    report = fit(model, settings=SftSettings(learning_rate=2e-2, num_train_epochs=90, lora_r=rank))
    assert report.last_loss < 0.2 < 1.5 < report.first_loss
    with torch.no_grad():
        batch = make_batch(model, [(model.template(p), r) for p, r in EXAMPLES])
        assert float(token_losses(model, batch).mean()) < 0.2  # merged: the base weights hold it
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    assert not any(".lora_" in name and "sft" in name for name, _ in model.model.named_parameters())


def test_accumulation_equals_the_full_batch():
    examples = [(p, tuple([3] * i) + (EOS,)) for i, p in enumerate(PROMPTS)]
    weights = []
    for size, parts in ((6, 1), (2, 3)):
        model = tiny_language_model()
        settings = SftSettings(
            per_device_train_batch_size=size, gradient_accumulation_steps=parts, num_train_epochs=3, lora_r=0
        )
        report = fit(model, examples, settings)
        assert report.steps == 3 and report.tokens == 3 * 21
        weights.append(model.model.lm_head.weight.detach().numpy())
    assert np.abs(weights[0] - weights[1]).max() < 1e-9


def test_seeds():
    settings = SftSettings(num_train_epochs=2, per_device_train_batch_size=2)
    losses = [fit(tiny_language_model(), settings=settings, seed=seed).losses for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


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
    plan = _plan(list(range(18)), settings, np.random.default_rng(0))
    assert len(plan) == 6 and all(len(part) == 3 for step in plan for part in step)
    for epoch in (plan[:3], plan[3:]):
        assert sorted(i for step in epoch for part in step for i in part) == list(range(18))


def test_schedule():
    settings = SftSettings(warmup_steps=4, min_lr_ratio=0.1)
    shares = [_schedule(step, 14, settings) for step in range(14)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[-1] == pytest.approx(1 - 0.9 * 9 / 10)


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
