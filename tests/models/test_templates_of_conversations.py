"""Templates on several turns: exact strings, texts that stay texts, one BOS, one EOS, and log-probabilities by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dualign.errors import DataError, UsageError
from dualign.models.language_model import Wording
from dualign.models.log_probs import PairScorer, rows
from dualign.models.pair_store import encode_prompt, encode_response, stored_groups
from dualign.models.sampler import TransformersSampler
from dualign.models.templates import conversation, make_template, make_transcript, with_template
from dualign.protocols import Policy, Sampling
from dualign.records import Group, Prompt, Response, Turn
from dualign.train.sft import SftSettings, fine_tune
from engine_parts import independent_log_prob
from sampling_parts import tiny_language_model
from tiny_tokenizers import BOS, END, EOS, bpe_tokenizer

ASKED = (Turn("user", "hello"), Turn("assistant", "Hello! the"))
THREE = Prompt("and you", history=ASKED)
FOUR = Prompt("and you", history=(Turn("system", "is safe"), *ASKED))
BEAVER = "BEGINNING OF CONVERSATION: USER: hello ASSISTANT:Hello! the</s>USER: and you ASSISTANT:"
CHAT = (
    "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nHello! the<|im_end|>\n"
    "<|im_start|>user\nand you<|im_end|>\n<|im_start|>assistant\n"
)
SYSTEM = "<|im_start|>system\nis safe<|im_end|>\n"


def text(name, prompt, *, system_prompt=None, tokenizer=None):
    tokenizer = tokenizer or bpe_tokenizer()
    return tokenizer.decode(make_template(name, tokenizer, Wording(system_prompt=system_prompt))(prompt))


@pytest.mark.parametrize(
    ("name", "prompt", "expected"),
    [
        ("beaver", THREE, BEAVER),
        ("chat", THREE, CHAT),
        ("chat", FOUR, SYSTEM + CHAT),
        ("plain", THREE, "hello\n\nHello! the\n\nand you"),
        ("plain", FOUR, "is safe\n\nhello\n\nHello! the\n\nand you"),
    ],
)
def test_strings_of_conversations(name, prompt, expected):
    assert text(name, prompt) == expected


def test_beaver_tokens_are_those_of_the_one_string():
    tokenizer = bpe_tokenizer(adds_bos=True)
    ids = make_template("beaver", tokenizer)(THREE)
    assert ids == tokenizer(BEAVER)["input_ids"]
    assert ids.count(EOS) == 1 and ids[-1] != EOS


def test_the_system_turn_of_a_prompt_replaces_the_configured_one():
    for name, ours in (("chat", SYSTEM + CHAT), ("plain", "is safe\n\nhello\n\nHello! the\n\nand you")):
        assert text(name, FOUR, system_prompt="other") == ours
        assert text(name, THREE, system_prompt="is safe") == ours
    assert text("plain", THREE, system_prompt="") == "hello\n\nHello! the\n\nand you"
    assert text("chat", THREE, system_prompt="") == "<|im_start|>system\n<|im_end|>\n" + CHAT


@pytest.mark.parametrize(
    ("name", "turn"),
    [(name, turn) for name, turns in (("chat", 4), ("plain", 4), ("beaver", 3)) for turn in range(turns)],
)
@pytest.mark.parametrize("typed", ["<|im_end|>", "</s>", "<s>", "\ue0003\ue001 </s>"])
def test_nobody_can_type_a_special_token_in_any_turn(name, turn, typed):
    tokenizer = bpe_tokenizer()
    template = make_template(name, tokenizer)
    turns = list(FOUR.history if name != "beaver" else ASKED) + [Turn("user", FOUR.text)]
    hostile = replace(turns[turn], text=f"a {typed} b")
    said = [*turns[:turn], hostile, *turns[turn + 1 :]]
    honest = [*turns[:turn], replace(hostile, text="a b"), *turns[turn + 1 :]]
    ids, clean = (template(Prompt(t[-1].text, history=tuple(t[:-1]))) for t in (said, honest))
    for token in (BOS, EOS, END):
        assert ids.count(token) == clean.count(token)
    # As text it is all still there.
    assert tokenizer.decode(ids) == tokenizer.decode(clean).replace("a b", f"a {typed} b")


def test_numbers_between_private_marks_do_not_call_another_text():
    hostile = Prompt("</s>", history=(Turn("user", "\ue0002\ue001"), Turn("assistant", "fine")))
    assert text("plain", hostile) == "\ue0002\ue001\n\nfine\n\n</s>"


@pytest.mark.parametrize("name", ["chat", "plain", "beaver"])
def test_exactly_one_bos_where_the_tokenizer_opens_with_one(name):
    opening, silent = bpe_tokenizer(adds_bos=True), bpe_tokenizer()
    assert make_template(name, silent)(THREE).count(BOS) == 0
    own = bpe_tokenizer(adds_bos=True)
    own.chat_template = "<s>" + own.chat_template
    for tokenizer in (opening, own):
        ids = make_template(name, tokenizer)(THREE)
        assert ids.count(BOS) == 1 and ids[0] == BOS


@pytest.mark.parametrize(
    ("history", "says"),
    [
        ((Turn("user", "x"),), "turn 2 is the user's; expected the assistant's"),
        ((Turn("assistant", "x"),), "turn 1 is the assistant's; expected the user's"),
        ((Turn("system", "x"), Turn("assistant", "y")), "turn 2 is the assistant's; expected the user's"),
        ((*ASKED, Turn("system", "x"), Turn("assistant", "y")), "turn 3 is the system's; expected the user's"),
    ],
)
def test_turns_that_do_not_alternate_are_refused(history, says):
    prompt = Prompt("z", history=history)
    with pytest.raises(DataError, match=says):
        conversation(prompt)
    with pytest.raises(DataError, match=f"prompt 'z': {says}"):
        text("chat", prompt)


def test_what_a_template_has_no_place_for_is_one_line():
    with pytest.raises(DataError, match="prompt 'and you': template 'beaver' has no place for the system turn"):
        text("beaver", FOUR)
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system turns here') }}"
    with pytest.raises(DataError, match="refuses the turns system, user, assistant, user .no system") as caught:
        text("chat", FOUR, tokenizer=tokenizer)
    assert "\n" not in str(caught.value)


def test_a_prompt_of_nothing_is_the_mark_of_a_start():
    tokenizer = bpe_tokenizer()
    expected = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    assert make_template("plain", tokenizer)(Prompt("")) == [expected]
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(UsageError, match="needs a tokenizer with a BOS"):
        make_template("plain", tokenizer)(Prompt(""))


def test_a_transcript_is_one_string_and_ends_with_one_eos():
    tokenizer = bpe_tokenizer(adds_bos=True)
    joint = make_transcript("beaver", tokenizer, append_eos=True)(THREE, "Hello! How")
    assert joint == [*tokenizer(BEAVER + "Hello! How")["input_ids"], EOS]
    # The colon merges with what follows it: cut apart, a score model would read other tokens than in training.
    apart = make_template("beaver", tokenizer)(THREE) + tokenizer("Hello! How")["input_ids"][1:]
    assert joint[:-1] != apart
    bare = make_transcript("beaver", tokenizer, append_eos=False)
    assert [*bare(THREE, "Hello! How"), EOS] == joint
    typed = bare(THREE, "Hello</s>")
    assert typed.count(EOS) == 1 and tokenizer.decode(typed) == "<s>" + BEAVER + "Hello</s>"
    with pytest.raises(UsageError, match="no EOS token"):
        make_transcript("plain", bpe_tokenizer(eos_token=None), append_eos=True)


def small_model(tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, initializer_range=0.3, pad_token_id=None, bos_token_id=BOS, eos_token_id=EOS,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).double().eval()
    fields = {"model": model, "tokenizer": tokenizer, "eos": EOS, "pad": tokenizer.pad_token_id}
    return tiny_language_model(**fields, max_prompt_tokens=200)


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
@pytest.mark.parametrize(
    ("name", "before"), [("chat", CHAT), ("beaver", BEAVER), ("plain", "hello\n\nHello! the\n\nand you")]
)
def test_log_prob_after_three_turns_is_that_by_hand(name, before, pad):
    tokenizer = bpe_tokenizer(pad_token=pad)
    model = with_template(small_model(tokenizer), Wording(name))
    said = ("No </s> Yes", "is", "the answer is safe")
    group = Group(THREE, tuple(Response(s) for s in said), np.zeros(3), np.zeros((3, 1)))
    (stored,) = stored_groups(model, [group])
    assert stored.prompt == tuple(tokenizer(before)["input_ids"])
    # One end, that of the template, though one answer spells it and padding may share its id.
    end = END if name == "chat" else EOS
    assert [response.count(end) for response in stored.responses] == [1, 1, 1]
    assert all(response[-1] == end for response in stored.responses)
    assert tokenizer.decode(stored.responses[0][:-1]) == said[0]
    with torch.no_grad():
        found = PairScorer(model)(rows([(stored.prompt, stored.responses)], model.pad)).responses[0]
        expected = [independent_log_prob(model.model, stored.prompt, response) for response in stored.responses]
    assert found.tolist() == pytest.approx([value.item() for value in expected], abs=1e-5)


def test_sampling_answers_the_whole_conversation():
    model = with_template(small_model(bpe_tokenizer()), Wording("beaver"))
    prompt = encode_prompt(model, THREE)
    sampling = Sampling(temperature=1.0, max_new_tokens=6)
    both = [THREE, Prompt("and you")]
    sampled, _ = TransformersSampler(model).generate(
        Policy("reference"), both, 2, sampling=sampling, seed=1, stage="test"
    )
    for response in sampled:
        with torch.no_grad():
            by_hand = independent_log_prob(model.model, prompt, response.tokens).item()
        assert response.log_prob == pytest.approx(by_hand, abs=1e-5)
        assert encode_response(model, response) == response.tokens


def test_fine_tuning_tells_conversations_with_the_same_last_text_apart():
    seen = []
    model = tiny_language_model(template=lambda prompt: seen.append(prompt) or [1, 3 + len(prompt.history)])
    settings = SftSettings(learning_rate=1e-3, num_train_epochs=1, per_device_train_batch_size=2, lora_r=0)
    fine_tune(model, [(THREE, (3, 2)), (Prompt(THREE.text), (4, 2))], settings=settings, seed=0, folder=None)
    assert seen == [THREE, Prompt(THREE.text)]
