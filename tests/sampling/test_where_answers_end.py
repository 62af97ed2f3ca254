"""Where an answer ends: at the tokenizer's EOS, the model's own ids, and what its template writes; never beyond."""

import json
from dataclasses import replace

import pytest
import torch

from dualign.cli.sample import sample
from dualign.models.language_model import LanguageModel, Turns, Wording, answer_text, decode
from dualign.models.loading import load_language_model
from dualign.models.pair_store import encode_response
from dualign.models.sampler import TransformersSampler
from dualign.models.templates import response_tokens, with_template
from dualign.protocols import Policy, Sampling
from dualign.records import Prompt, Response
from turn_families import FAMILIES, QUESTIONS, family_model

LONGEST = 24


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}

    def of(name):
        if name not in made:
            folder = family_model(name, tmp_path_factory.mktemp(name))
            made[name] = (folder, load_language_model(folder, dtype="float64"))
        return made[name]

    return of


def greedy(model, prompts):
    sampling = Sampling(max_new_tokens=LONGEST, top_k=1)
    drawn = TransformersSampler(model).generate(
        Policy("reference"), prompts, 1, sampling=sampling, seed=0, stage="test"
    )
    return [row[0] for row in drawn]


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_answers_are_those_of_transformers_with_the_same_stop_ids(name, models):
    _, model = models(name)
    tokenizer, end = model.tokenizer, model.tokenizer.convert_tokens_to_ids(FAMILIES[name].ends)
    prompts = [Prompt(question) for question in QUESTIONS]
    answers = greedy(model, prompts)
    assert end in model.written.stops and model.written.closing == (end,)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([model.template(prompt)])
        whole = model.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LONGEST,
            eos_token_id=sorted(model.written.stops), pad_token_id=model.pad,
        )[0, ids.shape[1] :].tolist()  # fmt: skip
        assert list(answer.tokens) == whole
        assert answer.text == tokenizer.decode(whole, skip_special_tokens=True)
        assert answer.finished == (whole[-1] in model.written.stops)
    # The test would be empty if no model ended a turn, or none would have gone on.
    assert sum(answer.finished for answer in answers) >= 8
    assert {answer.tokens[-1] for answer in answers if answer.finished} == {end}


@pytest.mark.parametrize("name", ["gemma", "phi"])
def test_the_eos_of_the_tokenizer_alone_would_read_an_invented_turn(name, models):
    _, model = models(name)
    alone = replace(model, turns=None)
    answers = greedy(alone, [Prompt(question) for question in QUESTIONS])
    invented = [a.text for a in answers if "user" in a.text or "model" in a.text or "two" in a.text.split()[1:]]
    assert len(invented) > 10


@pytest.mark.parametrize("name", FAMILIES)
def test_given_answers_are_closed_as_the_template_closes_them(name, models):
    _, model = models(name)
    end = model.tokenizer.convert_tokens_to_ids(FAMILIES[name].ends)
    tokens = encode_response(model, Response("red two"))
    assert tokens[-1] == end and decode(model.tokenizer, tokens[:-1]) == "red two"
    assert answer_text(model, tokens) == ("red two", True)
    assert answer_text(model, tokens[:-1]) == ("red two", False)
    if FAMILIES[name].template is not None:
        whole = model.tokenizer.apply_chat_template(
            [{"role": "user", "content": "one"}, {"role": "assistant", "content": "red two"}], tokenize=True
        )["input_ids"]
        apart = [*model.template(Prompt("one")), *tokens]
        assert whole[: len(apart)] == apart


def test_log_probabilities_count_the_terminator(models):
    _, model = models("gemma")
    (answer,) = greedy(model, [Prompt(QUESTIONS[0])])
    with torch.no_grad():
        ids = [*model.template(Prompt(QUESTIONS[0])), *answer.tokens]
        table = model.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        start = len(ids) - len(answer.tokens)
        by_hand = sum(float(table[start + k - 1, token]) for k, token in enumerate(answer.tokens))
    assert answer.tokens[-1] == 4 and answer.log_prob == pytest.approx(by_hand, abs=1e-9)


@pytest.mark.parametrize("template", ["plain", "beaver"])
def test_templates_without_a_mark_close_with_the_eos_and_stop_at_the_models_own(template, models):
    _, model = models("llama-3")
    bare = with_template(model, Wording(template))
    eos, turn = (model.tokenizer.convert_tokens_to_ids(t) for t in ("<|end_of_text|>", "<|eot_id|>"))
    assert bare.written.closing == (eos,) and bare.written.stops == {eos, turn}


def test_one_id_several_or_none_of_a_generation_config(models):
    _, model = models("gpt-2")
    for value, stops in ((None, {0}), (7, {0, 7}), ([7, 9], {0, 7, 9})):
        model.model.generation_config.eos_token_id = value
        assert with_template(model, Wording("plain")).written.stops == stops
    model.model.generation_config.eos_token_id = [0]


class Spelling:
    """A model that writes one text, letter by letter, whatever it is asked."""

    def __init__(self, ids, size):
        self.ids, self.size = ids, size

    def logits(self, written):
        row = torch.full((self.size,), -50.0, dtype=torch.float64)
        row[self.ids[min(written, len(self.ids) - 1)]] = 50.0
        return row


def test_an_answer_ends_at_a_terminator_of_plain_text_and_does_not_hold_it(models, monkeypatch):
    _, model = models("gpt-2")
    ids = response_tokens(model, "red\n### Human: two one", end=False)
    turns = Turns(stops=frozenset((0,)), closing=tuple(response_tokens(model, "\n### Human:", end=False)),
                  terminator="\n### Human:")  # fmt: skip
    spoken = replace(model, turns=turns)
    script = Spelling(ids, len(model.tokenizer))
    written = iter(range(LONGEST + 1))
    from dualign.models import sampler as engine

    def forward(self, ids, mask, positions, cache):
        return script.logits(next(written)).repeat(ids.shape[0], 1)

    monkeypatch.setattr(engine._Decoder, "_forward", forward)
    (answer,) = greedy(spoken, [Prompt("one")])
    assert (answer.text, answer.finished) == ("red", True)
    assert decode(model.tokenizer, answer.tokens) == "red\n### Human:"
    assert encode_response(spoken, Response("red"))[-len(turns.closing) :] == turns.closing
    assert answer_text(spoken, ids) == ("red", True)


def test_spaces_before_punctuation_stay_whatever_the_tokenizer_says(models):
    _, model = models("qwen")
    forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    for name in ("clean_up_tokenization_spaces", forced):
        setattr(model.tokenizer, name, True)
    tokens = response_tokens(model, "red , two . one 's", end=False)
    assert model.tokenizer.decode(tokens) == "red, two. one's"
    assert answer_text(model, tokens)[0] == "red , two . one 's"
    for name in ("clean_up_tokenization_spaces", forced):
        setattr(model.tokenizer, name, False)


def test_marks_of_reasoning_are_text_even_where_they_are_special():
    from turn_families import CHATML, byte_tokenizer

    special = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
    tokenizer = byte_tokenizer(special, template=CHATML, eos_token="<|im_end|>")
    model = LanguageModel(None, tokenizer, lambda _: [0], eos=1, pad=0)
    ids = tokenizer("<think>red</think>two<|im_start|><|im_end|>", add_special_tokens=False)["input_ids"]
    assert answer_text(model, ids) == ("<think>red</think>two", True)


def test_few_answers_that_end_by_themselves_are_warned_of(models, tmp_path, capsys):
    folder, _ = models("gemma")
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": q}) + "\n" for q in QUESTIONS[:4]))
    for longest, warned in ((1, True), (LONGEST, False)):
        sample(str(folder), tmp_path / "p.jsonl", tmp_path / "o.jsonl", max_new_tokens=longest, seed=1)
        assert ("warning: 0% of the responses ended by themselves" in capsys.readouterr().err) == warned
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert all(row["tokens"][-1] == 4 and row["tokens"].count(4) == 1 for row in rows if row["finished"])
    assert sum(row["finished"] for row in rows) >= 2 and "user" not in "".join(row["response"] for row in rows)
