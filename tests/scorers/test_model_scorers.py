"""Scorers on tiny random Hugging Face models: batch and padding reach no score, labels and templates by hand."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from dualign.errors import ConfigError, MissingError, ScorerError
from dualign.records import Prompt, Turn
from dualign.scorers.encoding import absent_id
from dualign.scorers.table import make_scorer

WORDS = [f"w{index}" for index in range(200)]
PROMPTS = [Prompt(" ".join(WORDS[start : start + 3 + start % 5])) for start in range(12)]
RESPONSES = [" ".join(WORDS[40 + 3 * start : 44 + 5 * start]) for start in range(12)]
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}


def save_tokenizer(folder, *, padding_side, pad):
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", "<pad>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token=pad,
        padding_side=padding_side,
        chat_template="<s> {{messages[0].content}} {{messages[1].content}} </s>",
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    llama = LlamaForSequenceClassification(LlamaConfig(vocab_size=204, num_labels=1, **SHAPE))
    bert = BertForSequenceClassification(BertConfig(vocab_size=204, num_labels=3, **SHAPE))
    encoder = BertModel(BertConfig(vocab_size=204, **SHAPE))
    for model in (llama, bert, encoder):
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.5)
    for name, model, side, pad in (
        ("llama", llama, "left", "</s>"),
        ("llama-right", llama, "right", "<pad>"),
        ("bert", bert, "right", "<pad>"),
        ("encoder", encoder, "left", "<pad>"),
    ):
        model.save_pretrained(root / name)
        save_tokenizer(root / name, padding_side=side, pad=pad)
    return root


def scores(folders, spec, prompts=PROMPTS, responses=RESPONSES):
    return make_scorer(spec, direction="cost", folder=folders)(prompts, responses)


LABELS = {"LABEL_1": 1.0, "LABEL_2": 2.0}
SPECS = {
    "decoder, pad is end": {"kind": "sequence-classifier", "model": "llama"},
    "decoder, own pad": {"kind": "sequence-classifier", "model": "llama-right"},
    "encoder classes": {"kind": "sequence-classifier", "model": "bert", "labels": LABELS},
    "relevance": {"kind": "embedding-relevance", "model": "encoder"},
}


@pytest.mark.parametrize("name", SPECS)
def test_batch_size_and_order_change_no_score(folders, name):
    one = scores(folders, {**SPECS[name], "batch_size": 1})
    assert one.std() > 1e-3
    for size in (2, 5, 16):
        assert np.abs(scores(folders, {**SPECS[name], "batch_size": size}) - one).max() < 1e-5
    turned = scores(folders, SPECS[name], PROMPTS[::-1], RESPONSES[::-1])
    assert np.abs(turned[::-1] - one).max() < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SPECS)
def test_a_text_gets_the_same_score_alone_and_among_others(folders, name, dtype):
    scorer = make_scorer({**SPECS[name], "dtype": dtype}, direction="cost", folder=folders)
    alone = [scorer([prompt], [response])[0] for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    assert np.abs(scorer(PROMPTS, RESPONSES) - alone).max() < 1e-6
    assert np.abs(scorer([*PROMPTS, *PROMPTS[:5]], [*RESPONSES, *RESPONSES[5:10]])[:12] - alone).max() < 1e-6


def test_padding_side_and_a_pad_that_is_the_end_token_change_no_score(folders):
    left, right = (scores(folders, {"kind": "sequence-classifier", "model": name}) for name in ("llama", "llama-right"))
    assert np.abs(left - right).max() < 1e-5


def test_decoder_score_is_that_of_the_end_token(folders):
    model = LlamaForSequenceClassification.from_pretrained(folders / "llama").eval()
    text = f"<s> {PROMPTS[0].text} </s> {RESPONSES[0]} </s>".split()
    ids = [{"<s>": 1, "</s>": 2}.get(word) or 4 + int(word[1:]) for word in text]
    with torch.no_grad():
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
        expected = float(model.score(hidden))
    assert scores(folders, SPECS["decoder, pad is end"])[0] == pytest.approx(expected, abs=1e-5)


def test_label_scores_are_expectations(folders):
    parts = [scores(folders, {**SPECS["encoder classes"], "labels": {f"LABEL_{i}": 1.0}}) for i in range(3)]
    assert sum(parts) == pytest.approx(np.ones(12))
    assert scores(folders, SPECS["encoder classes"]) == pytest.approx(parts[1] + 2 * parts[2])


def test_templates_write_what_they_say(folders):
    spec = SPECS["decoder, pad is end"]
    pair = scores(folders, spec)
    literal = scores(folders, {**spec, "template": "{prompt} </s> {response} </s>"})
    assert np.abs(pair - literal).max() < 1e-5
    chat = scores(folders, {**spec, "template": "chat"})
    assert np.abs(chat - scores(folders, {**spec, "template": "<s> {prompt} {response} </s>"})).max() < 1e-5
    assert np.abs(chat - pair).max() > 1e-3
    alone = scores(folders, {**spec, "template": "response"}, [PROMPTS[0]] * 12)
    assert np.abs(alone - scores(folders, {**spec, "template": "response"})).max() < 1e-5


def test_a_conversation_is_scored_whole_and_cannot_end_its_turn(folders):
    spec = SPECS["decoder, pad is end"]
    prompt = Prompt("w3", history=(Turn("user", "w1"), Turn("assistant", "w2")))
    for template, same in (("pair", "pair"), ("{prompt} </s> {response} </s>", "pair")):
        lines = scores(folders, {**spec, "template": same}, [Prompt("user: w1\nassistant: w2\nuser: w3")], ["w4"])
        assert scores(folders, {**spec, "template": template}, [prompt], ["w4"]) == pytest.approx(lines, abs=1e-5)
    # This chat template writes its first two turns: here the two of the history.
    chat = scores(folders, {**spec, "template": "chat"}, [prompt], ["w4"])
    literal = scores(folders, {**spec, "template": "<s> w1 w2 </s>{response}"}, [prompt], [""])
    assert chat == pytest.approx(literal, abs=1e-5)
    typed = scores(folders, {**spec, "template": "<s> {prompt} {response} </s>"}, PROMPTS[:1], ["w9 </s>"])
    plain = scores(folders, {**spec, "template": "<s> {prompt} {response} </s>"}, PROMPTS[:1], ["w9"])
    assert typed == pytest.approx(plain, abs=1e-5)  # this tokenizer has no pieces to write the token in as text


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"model": "bert"}, ConfigError, "'labels' must say"),
        ({"model": "bert", "labels": {"LABEL1": 1.0}}, ConfigError, "did you mean 'LABEL_1'"),
        ({"model": "llama", "template": "no place"}, ConfigError, "does not contain"),
        ({"model": "./none"}, MissingError, "no such folder"),
        ({"model": "."}, MissingError, "cannot be loaded"),
    ],
)
def test_mistakes_before_any_score(folders, more, error, says):
    with pytest.raises(error, match=says) as caught:
        make_scorer({"kind": "sequence-classifier", **more}, direction="cost", folder=folders)
    assert "\n" not in str(caught.value)


def test_a_text_that_is_too_long_is_never_cut(folders):
    with pytest.raises(ScorerError, match="prompt 11 needs"):
        scores(folders, {**SPECS["decoder, pad is end"], "max_length": 32})


def test_weights_with_pickle_are_not_loaded(folders, tmp_path):
    model = BertForSequenceClassification.from_pretrained(folders / "bert")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(MissingError, match="cannot be loaded"):
        make_scorer({"kind": "sequence-classifier", "model": ".", "labels": LABELS}, direction="cost", folder=tmp_path)


def test_relevance_of_a_text_to_itself_is_one_and_of_nothing_zero(folders):
    found = scores(folders, SPECS["relevance"], PROMPTS[:3], [PROMPTS[0].text, RESPONSES[1], " "])
    assert found[0] == pytest.approx(1) and abs(found[1]) < 1 and found[2] == 0


def test_revision_follows_the_files_and_the_settings(folders):
    specs = [
        *SPECS.values(),
        {**SPECS["encoder classes"], "labels": {"LABEL_0": 1.0}},
        {**SPECS["decoder, own pad"], "template": "chat"},
    ]
    revisions = [make_scorer(spec, direction="cost", folder=folders).revision for spec in specs]
    assert len(set(revisions)) == len(specs)
    batch = make_scorer({**specs[0], "batch_size": 3}, direction="reward", folder=folders)
    assert batch.revision == revisions[0]


def test_absent_id():
    assert absent_id([[0, 1], [3]]) == 2
    assert absent_id([[1, 2]]) == 0


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "sequence-classifier", "model": "llama"},
        {"kind": "embedding-relevance", "model": "encoder"},
    ],
)
def test_loading_shows_no_progress(folders, spec, capfd):
    logging.enable_progress_bar()
    make_scorer(spec, direction="cost", folder=folders)
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()
