"""Frozen hidden states on a tiny random model: by hand, in any batch, cut at a layer, computed once."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from dualign.errors import ConfigError, DataError, ScorerError
from dualign.records import Prompt
from dualign.scorers import states
from dualign.scorers.states import (
    RememberedStates,
    StateFeatures,
    StateReader,
    StateSettings,
    cached_states,
    config_of,
)
from fitting_parts import tiny_model

PROMPTS = [Prompt("hello " * n) for n in (1, 4, 2, 9)]
RESPONSES = ["the answer", "no", "and the answer is the answer", "hello there"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("states") / "model")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def settings(folder, **changes):
    chosen = {"layer": None, "pooling": "mean", "template": "plain", "max_length": 64, "dtype": "float32"}
    return StateSettings(model=str(folder), **chosen | changes)


def by_hand(folder, prompt, response, layer):
    """Return the states of the response's tokens after ``layer`` layers, under the final norm."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    opening = tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    reply = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        found = model(input_ids=torch.tensor([opening + reply]), output_hidden_states=True)
    states = found.last_hidden_state if layer == 3 else model.norm(found.hidden_states[layer])
    return states[0, len(opening) :].double().detach().numpy()


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_pooled_states_are_those_computed_one_by_one(folder, layer):
    read = {name: StateReader(settings(folder, layer=layer, pooling=name)) for name in ("mean", "last", "both")}
    alone = [by_hand(folder, *pair, layer) for pair in zip(PROMPTS, RESPONSES, strict=True)]
    means, ends = np.array([states.mean(0) for states in alone]), np.array([states[-1] for states in alone])
    assert read["mean"](PROMPTS, RESPONSES) == pytest.approx(means, abs=1e-5)
    assert read["last"](PROMPTS, RESPONSES) == pytest.approx(ends, abs=1e-5)
    assert read["both"](PROMPTS, RESPONSES) == pytest.approx(np.hstack([means, ends]), abs=1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_batches_change_no_state(folder, size, monkeypatch):
    reader = StateReader(settings(folder, template="chat"))
    whole = reader(PROMPTS, RESPONSES)
    monkeypatch.setattr(states, "BATCH_SIZE", size)
    assert reader(PROMPTS, RESPONSES) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_state_is_the_same_alone_and_among_others(folder, dtype, pooling):
    reader = StateReader(settings(folder, dtype=dtype, pooling=pooling))
    prompts, responses = PROMPTS * 3, [reply + " and" * n for n in (0, 1, 5) for reply in RESPONSES]
    alone = np.concatenate([reader([prompt], [reply]) for prompt, reply in zip(prompts, responses, strict=True)])
    assert np.abs(reader(prompts, responses) - alone).max() < 1e-6
    block = StateFeatures.of(reader, alone)
    remembered = RememberedStates(reader, prompts[:7], responses[:7])
    assert np.abs(block.standardised(remembered(prompts, responses)) - block.standardised(alone)).max() < 1e-6


@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_an_open_dtype_becomes_the_faster_one_and_is_told(folder, faster, monkeypatch):
    monkeypatch.setattr(states, "faster_dtype", lambda model: faster)
    reader, named = StateReader(settings(folder, dtype="auto")), StateReader(settings(folder, dtype=faster))
    assert reader.settings == named.settings
    assert (reader(PROMPTS, RESPONSES) == named(PROMPTS, RESPONSES)).all()


def test_what_a_model_cannot_give_is_refused(folder):
    assert config_of(str(folder)).num_hidden_layers == 3
    with pytest.raises(ConfigError, match="layer 4; the model has 3"):
        StateReader(settings(folder, layer=4))
    with pytest.raises(ScorerError, match="max_length is 12"):
        StateReader(settings(folder, max_length=12))(PROMPTS, RESPONSES)


def test_states_are_computed_once_and_again_for_another_text_or_layer(folder, monkeypatch):
    reader = StateReader(settings(folder))
    first = cached_states(reader, PROMPTS, RESPONSES)
    calls = []
    read = StateReader.__call__
    monkeypatch.setattr(StateReader, "__call__", lambda self, *texts: calls.append(texts) or read(self, *texts))
    assert (cached_states(reader, PROMPTS, RESPONSES) == first).all() and not calls
    cached_states(reader, PROMPTS, [*RESPONSES[:-1], "other"])
    cached_states(StateReader(settings(folder, layer=2)), PROMPTS, RESPONSES)
    assert len(calls) == 2
    assert np.abs(read(reader, PROMPTS, RESPONSES) - first).max() < 1e-5


def test_remembered_states_are_looked_up_and_others_are_read(folder, monkeypatch):
    reader = StateReader(settings(folder))
    known = RememberedStates(reader, PROMPTS[:3], RESPONSES[:3])
    calls = []
    read = StateReader.__call__
    monkeypatch.setattr(StateReader, "__call__", lambda self, *texts: calls.append(texts[1]) or read(self, *texts))
    order = [3, 0, 2]
    states = known([PROMPTS[i] for i in order], [RESPONSES[i] for i in order])
    assert states == pytest.approx(read(reader, PROMPTS, RESPONSES)[order], abs=1e-5)
    assert calls == [[RESPONSES[3]]]


def test_standardised_states_have_length_one_on_average_and_a_column_that_never_moves_counts_nothing():
    states = np.random.default_rng(0).normal(3, 2, size=(50, 6))
    states[:, 2] = 7
    block = StateFeatures.of(None, states)
    features = block.standardised(states)
    assert (features**2).sum(1).mean() == pytest.approx(5 / 6)
    assert (block.standardised(states + 1)[:, 2] == 0).all()


def test_another_model_at_the_same_place_is_refused(folder, tmp_path):
    block = StateFeatures.of(StateReader(settings(folder)), np.eye(24))
    other = tiny_model(tmp_path / "other", seed=1)
    facts = block.to_json()
    facts = {**facts, "settings": {**facts["settings"], "model": str(other)}}
    with pytest.raises(DataError, match="is not the one that the head was fitted on"):
        StateFeatures.load(facts, block.tensors())
