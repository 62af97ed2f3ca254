"""Layouts agree with each other and with an independent computation, in values and in gradients."""

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, Llama4ForCausalLM, Llama4TextConfig

from dualign.errors import UsageError
from dualign.models import log_probs
from dualign.models.log_probs import LAYOUTS, PairScorer, choose_layout
from dualign.models.pair_store import stored_groups
from engine_parts import EOS, PAD, groups, independent_log_prob, language_model, tiny_llama


def sequences(model, n=3, k=3):
    return [(g.prompt, g.responses) for g in stored_groups(model, groups(n, k))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_a_plain_computation(layout, tied, temperature, monkeypatch) -> None:
    monkeypatch.setattr(log_probs, "CHUNK_LOGITS", 40 * 7)
    model = tiny_llama(tied=tied)
    shared = language_model(model, temperature=temperature)
    batch = sequences(shared)
    coefficients = torch.tensor(np.random.default_rng(0).normal(size=(3, 3)))
    ours = PairScorer(shared)(LAYOUTS[layout](batch, PAD)).responses
    plain = torch.stack([torch.stack([independent_log_prob(model, p, r, temperature) for r in rs]) for p, rs in batch])
    assert torch.allclose(ours, plain, rtol=0, atol=1e-10)
    weights = [p for p in model.parameters()]
    expected = torch.autograd.grad((coefficients * plain).sum(), weights)
    for found, right in zip(torch.autograd.grad((coefficients * ours).sum(), weights), expected, strict=True):
        assert torch.allclose(found, right, rtol=0, atol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_first_token_and_eos_count_and_nothing_after(layout) -> None:
    model = tiny_llama()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    scorer = PairScorer(language_model(model))
    # A model without weights gives every token 1/40: the sum counts the tokens, EOS among them.
    values = scorer(LAYOUTS[layout]([((2, 5, 6), ((7, 8, EOS), (9, EOS), (EOS,)))], PAD)).responses
    assert torch.allclose(values, -np.log(40) * torch.tensor([[3.0, 2.0, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_and_company_change_nothing(layout) -> None:
    model = language_model()
    scorer = PairScorer(model)
    batch = sequences(model, 4)
    together = scorer(LAYOUTS[layout](batch, PAD)).responses
    other_pad = scorer(LAYOUTS[layout](batch, 17)).responses
    alone = torch.cat([scorer(LAYOUTS[layout]([one], PAD)).responses for one in batch])
    assert torch.allclose(together, alone, rtol=0, atol=1e-10)
    assert torch.equal(together, other_pad)


def test_grammar_normalises_over_the_allowed_tokens() -> None:
    grammar = torch.zeros(2, 40, dtype=torch.bool)
    grammar[0, [5, 7]] = True
    grammar[1, [EOS, 9, 11]] = True
    model = language_model(grammar=grammar)
    value = PairScorer(model)(log_probs.rows([((2, 3), ((5, 9, EOS),))], PAD)).responses
    logits = model.model(torch.tensor([[2, 3, 5, 9]])).logits[0]
    expected = (
        logits[1, 5] - logits[1, [5, 7]].logsumexp(0)
        + logits[2, 9] - logits[2, [EOS, 9, 11]].logsumexp(0)
        + logits[3, EOS] - logits[3, [EOS, 9, 11]].logsumexp(0)
    )  # fmt: skip
    assert torch.allclose(value[0, 0], expected, rtol=0, atol=1e-10)


def test_the_side_on_which_a_tokenizer_pads_changes_nothing() -> None:
    model = language_model()
    values = []
    for side in ("left", "right"):
        model.tokenizer.padding_side = side
        values.append(PairScorer(model)(log_probs.rows(sequences(model), PAD)).responses)
    assert torch.equal(*values)


@pytest.mark.parametrize("layout", ["auto", "rows"])
@pytest.mark.parametrize("cap", [0.1, 30.0])  # random logits are near 0.1: a cap at 30 changes none of them yet
def test_a_model_that_caps_its_logits_after_the_head_is_refused(layout, cap) -> None:
    config = Gemma2Config(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=cap, pad_token_id=PAD, eos_token_id=EOS,
    )  # fmt: skip
    capped = language_model(Gemma2ForCausalLM(config).double())
    with pytest.raises(UsageError, match="Gemma2ForCausalLM changes its logits after the output head"):
        choose_layout(PairScorer(capped), sequences(capped, 1), PAD, layout)


def test_a_model_whose_body_cannot_be_told_from_its_head_is_refused() -> None:
    config = Llama4TextConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, intermediate_size_mlp=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_local_experts=2, pad_token_id=PAD,
    )  # fmt: skip
    model = language_model(Llama4ForCausalLM(config).double())
    with pytest.raises(UsageError, match="Llama4ForCausalLM does not tell its body from its output head"):
        choose_layout(PairScorer(model), sequences(model, 1), PAD, "rows")


def test_a_model_that_cannot_share_falls_back_and_says_so(monkeypatch) -> None:
    model = language_model()
    batch = sequences(model, 1)
    assert choose_layout(PairScorer(model), batch, PAD, "auto") == ("shared", None)

    def leaking(batch, pad):
        made = log_probs.shared(batch, pad)
        width = made.input_ids.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool).tril()[None, None]
        return log_probs.TokenBatch(
            made.input_ids, made.position_ids, causal.expand(len(batch), -1, -1, -1), made.predictor, made.target,
            made.step, made.slot, made.shape,
        )  # fmt: skip

    monkeypatch.setitem(LAYOUTS, "shared", leaking)
    name, note = choose_layout(PairScorer(model), batch, PAD, "shared")
    assert name == "rows"
    assert "differs from rows" in note
