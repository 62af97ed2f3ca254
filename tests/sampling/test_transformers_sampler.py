"""What a sampler must be: unbiased, keyed by draw and not by batch, and honest about its log-probabilities."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import Lfm2Config, Lfm2ForCausalLM, RwkvConfig, RwkvForCausalLM

from dualign.errors import DataError, UsageError
from dualign.models.sampler import RoomyLayer, TransformersSampler, draw, truncated, uniforms
from dualign.protocols import Policy, Sampling
from dualign.records import Prompt
from sampling_parts import EOS, PROMPTS, WORDS, tiny_language_model

REFERENCE = Policy("reference")


def generate(model, prompts, n, *, length=6, batch_size=8, seed=3, temperature=1.0, **more):
    sampling = Sampling(temperature=temperature, max_new_tokens=length, batch_size=batch_size, **more)
    return TransformersSampler(model).generate(REFERENCE, prompts, n, sampling=sampling, seed=seed, stage="test")


def plain_log_prob(model, prompt, response):
    """Forward pass without cache, padding or batch."""
    before = model.template(prompt)
    with torch.no_grad():
        logits = model.model(torch.tensor([[*before, *response.tokens]])).logits[0, len(before) - 1 : -1]
    total = 0.0
    for position, (row, token) in enumerate(zip(logits, response.tokens, strict=True)):
        scaled = row / model.temperature
        if model.grammar is not None:
            scaled[~model.grammar[min(position, len(model.grammar) - 1)]] = -torch.inf
        total += float(torch.log_softmax(scaled, dim=0)[token])
    return total


def small_grammar():
    grammar = torch.zeros(3, len(WORDS), dtype=torch.bool)
    grammar[0, [3, 4, 5]] = True
    grammar[1, [EOS, 6, 7]] = True
    grammar[2, EOS] = True
    return grammar


def test_frequencies_are_those_of_the_enumerated_distribution():
    model = tiny_language_model(grammar=small_grammar(), temperature=0.8)
    prompt = Prompt("a b c")
    replies = [(a, *rest) for a in (3, 4, 5) for rest in ((EOS,), (6, EOS), (7, EOS))]
    responses = generate(model, [prompt], 4000, length=3, batch_size=500, temperature=0.8)[0]
    make = type(responses[0])
    expected = np.exp([plain_log_prob(model, prompt, make("", reply)) for reply in replies])
    assert expected.sum() == pytest.approx(1, abs=1e-12)
    counts = Counter(response.tokens for response in responses)
    assert set(counts) <= set(replies)
    assert stats.chisquare([counts[reply] for reply in replies], 4000 * expected).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_prob_is_that_of_a_plain_forward_pass(temperature):
    model = tiny_language_model(temperature=temperature)
    for prompt, responses in zip(PROMPTS, generate(model, PROMPTS, 5, length=9, temperature=temperature), strict=True):
        for response in responses:
            assert response.log_prob == pytest.approx(plain_log_prob(model, prompt, response), abs=1e-10)


def test_draws_do_not_depend_on_batch_order_or_number_of_samples():
    model = tiny_language_model()
    whole = generate(model, PROMPTS, 5, length=70, batch_size=64)
    alone = generate(model, PROMPTS, 5, length=70, batch_size=1)
    split = generate(model, PROMPTS, 5, length=70, batch_size=3)
    backward = generate(model, PROMPTS[::-1], 5, length=70, batch_size=7)[::-1]
    fewer = generate(model, PROMPTS, 2, length=70)
    for other in (alone, split, backward):
        assert [[r.tokens for r in g] for g in other] == [[r.tokens for r in g] for g in whole]
        assert np.allclose(
            [[r.log_prob for r in g] for g in other], [[r.log_prob for r in g] for g in whole], atol=1e-9
        )
    assert [[r.tokens for r in g] for g in fewer] == [[r.tokens for r in g[:2]] for g in whole]
    assert max(len(r.tokens) for g in whole for r in g) > 20  # rows did leave at different times


def test_stage_seed_and_sample_change_the_draws():
    model = tiny_language_model()
    texts = [tuple(r.tokens for r in generate(model, PROMPTS[:1], 8, seed=seed)[0]) for seed in (0, 1)]
    assert texts[0] != texts[1]
    assert len(set(texts[0])) > 1
    streams = [uniforms(0, "a", "p", 0, 4), uniforms(0, "b", "p", 0, 4), uniforms(0, "a", "p", 1, 4)]
    assert len({tuple(stream) for stream in streams}) == 3
    assert (uniforms(0, "a", "p", 0, 9)[:4] == streams[0]).all()


def test_end_of_response():
    model = tiny_language_model()
    responses = [r for group in generate(model, PROMPTS, 40, length=8, batch_size=64) for r in group]
    assert {response.finished for response in responses} == {True, False}
    for response in responses:
        assert response.finished == (response.tokens[-1] == EOS)
        assert EOS not in response.tokens[:-1]
        assert response.finished or len(response.tokens) == 8
        assert "</s>" not in response.text


def test_draw_never_takes_what_has_no_probability():
    log_probs = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).repeat(3, 1)
    assert draw(log_probs, torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 1, 1]
    halves = torch.log(torch.tensor([[0.5, 0.5]])).repeat(2, 1)
    assert draw(halves, torch.tensor([0.4999, 0.5001], dtype=torch.float64)).tolist() == [0, 1]


def test_top_k_and_top_p():
    log_probs = torch.log(torch.tensor([[0.1, 0.4, 0.3, 0.2]]))
    assert truncated(log_probs, top_k=0, top_p=1.0) is log_probs
    assert truncated(log_probs, top_k=2, top_p=1.0).isfinite().tolist() == [[False, True, True, False]]
    assert truncated(log_probs, top_k=0, top_p=0.65).isfinite().tolist() == [[False, True, True, False]]
    assert truncated(log_probs, top_k=0, top_p=0.3).isfinite().tolist() == [[False, True, False, False]]
    model = tiny_language_model()
    assert len({r.tokens for r in generate(model, PROMPTS[:1], 9, top_k=1)[0]}) == 1


def test_mistakes():
    model = tiny_language_model(max_prompt_tokens=4)
    with pytest.raises(UsageError, match="temperature: given 0.5, but this policy is defined at 1.0"):
        generate(model, PROMPTS[1:2], 1, temperature=0.5)
    with pytest.raises(DataError, match="7 tokens, at most 4"):
        generate(model, PROMPTS[:1], 1)
    with pytest.raises(UsageError, match="top_p"):
        generate(model, PROMPTS[1:2], 1, top_p=0.0)
    assert generate(model, [], 3) == []


def test_the_uniforms_are_uniform():
    sample = np.concatenate([uniforms(7, "s", f"p{i}", 0, 8) for i in range(500)])
    assert stats.kstest(sample, "uniform").pvalue > 1e-3
    first = np.array([uniforms(7, "s", "p", i, 2) for i in range(2000)])
    assert abs(np.corrcoef(first[:, 0], first[:, 1])[0, 1]) < 4 / np.sqrt(2000)


def test_prompt_padding_does_not_move_a_draw():
    model = tiny_language_model()
    short = Prompt("b")
    long = Prompt(" ".join("abcdefghi" * 3))
    together = generate(model, [short, long], 3, batch_size=6)[0]
    alone = generate(model, [short], 3)[0]
    assert [r.tokens for r in together] == [r.tokens for r in alone]
    assert [r.log_prob for r in together] == pytest.approx([r.log_prob for r in alone], abs=1e-9)


def recurrent(kind):
    """Return a model of layers that keep a state: one that transformers' caches hold, and one that ignores them."""
    ids = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": EOS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "rwkv":
            model = RwkvForCausalLM(RwkvConfig(hidden_size=16, attention_hidden_size=16, num_hidden_layers=2, **ids))
            for value in model.parameters():
                torch.nn.init.normal_(value, std=0.4)
        else:
            size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
            config = Lfm2Config(
                num_key_value_heads=1, **size, layer_types=["conv", "full_attention"], initializer_range=0.5, **ids
            )
            model = Lfm2ForCausalLM(config)
    return tiny_language_model(model=model.eval())


def test_a_model_with_a_state_is_decoded_as_it_reads():
    model = recurrent("lfm2")
    prompts = list(PROMPTS[:4])
    answers = generate(model, prompts, 3, length=10, batch_size=5)
    assert len({len(response.tokens) for row in answers for response in row}) > 2  # rows leave the batch
    for prompt, row in zip(prompts, answers, strict=True):
        for response in row:
            assert response.log_prob == pytest.approx(plain_log_prob(model, prompt, response), abs=1e-4)


def test_a_model_that_heeds_no_cache_is_refused():
    with pytest.raises(UsageError, match=r"RwkvForCausalLM cannot be sampled from here: .* differ by .* nats"):
        generate(recurrent("rwkv"), PROMPTS[:1], 1)


def test_rows_of_a_cache_that_change_places_stay_changed():
    layer, rows = RoomyLayer(), torch.arange(2.0).view(2, 1, 1, 1)
    for _ in range(3):
        layer.update(rows, rows)
    layer.reorder_cache(torch.tensor([1, 0]))
    keys, _ = layer.update(rows, rows)
    assert keys[:, 0, :, 0].tolist() == [[1, 1, 1, 0], [0, 0, 0, 1]]
    layer.batch_repeat_interleave(2)
    keys, _ = layer.update(rows.repeat(2, 1, 1, 1), rows.repeat(2, 1, 1, 1))
    assert keys[:, 0, :, 0].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 1], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
