"""Safe RLHF score checkpoints on tiny random models: both layouts by hand, batches, roles, and what is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BloomConfig,
    BloomModel,
    GPT2Config,
    GPT2Model,
    GPTNeoXConfig,
    GPTNeoXModel,
    LlamaConfig,
    LlamaModel,
    OPTConfig,
    OPTModel,
)
from transformers.utils import logging

from dualign.errors import ConfigError, DataError, MissingError, ScorerError
from dualign.records import Prompt, Turn
from dualign.scorers.score_model import load_score_model, save_score_model
from dualign.scorers.table import make_scorer
from tiny_tokenizers import BOS, EOS, PAD, bpe_tokenizer

TOKENS = len(bpe_tokenizer())
LENGTHS = (0, 5, 1, 12, 30, 3, 18)
PROMPTS = [Prompt("hello " + "there " * n) for n in LENGTHS]
RESPONSES = [("Hello! " * n + "the answer")[: 4 + 3 * n] for n in reversed(LENGTHS)]
EARLY = {"architectures": ["LlamaModelForScore"], "bias": False, "score_dim": 1}
LATER = {
    "architectures": ["LlamaForScore"], "bias": False, "score_bias": True, "score_dim": 1, "score_type": "reward",
    "do_normalize": False, "normalizer_type": "ExponentialMovingAverage", "momentum": 0.9,
    "mean": [-0.0757], "var": [3.1875],
}  # fmt: skip


def random_backbone(seed=0, **changes):
    shape = {"vocab_size": TOKENS, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
             "num_attention_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3,
             "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaModel(LlamaConfig(**shape | changes)).eval()


def head(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 16, generator=generator), torch.randn(1, generator=generator)


def write(folder, tensors, facts, *, pickled=False, adds_bos=True):
    """Write a checkpoint as another program would: a config, tensors under their published names, a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = random_backbone().config.to_dict()
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "dtype"} | facts))
    plain = {name: tensor.clone() for name, tensor in tensors.items()}
    if pickled:
        torch.save(plain, folder / "pytorch_model.bin")
    else:
        save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    bpe_tokenizer(adds_bos=adds_bos).save_pretrained(folder)
    return folder


def early_tensors():
    inv_freq = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.full((4,), torch.nan) for n in range(2)}
    body = {f"model.{name}": tensor for name, tensor in random_backbone().state_dict().items()}
    return body | inv_freq | {"score_head.weight": head()[0]}


def later_tensors(bias=None, mean=-0.0757, variance=3.1875):
    buffers = {"mean": torch.tensor([mean]), "var": torch.tensor([variance]), "count": torch.tensor([7])}
    kept = {name: tensor for name, tensor in early_tensors().items() if "inv_freq" not in name}
    bias = head()[1] if bias is None else bias
    return kept | {"score_head.bias": bias} | {f"normalizer.{name}": value for name, value in buffers.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("score")
    write(root / "early", early_tensors(), EARLY, pickled=True)
    write(root / "later", later_tensors(), LATER)
    write(root / "zero-bias", later_tensors(bias=torch.zeros(1)), LATER)
    write(root / "normalised", later_tensors(), LATER | {"do_normalize": True})
    return root


def scorer(folders, model, direction="cost", **keys):
    return make_scorer({"kind": "score-checkpoint", "model": model, **keys}, direction=direction, folder=folders)


def by_hand(prompt, response, *, end="</s>", bias=True):
    """Return w . h + b of the one string, nothing of ours but the weights."""
    text = f"BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:{response}{end}"
    ids = torch.tensor([bpe_tokenizer(adds_bos=True)(text)["input_ids"]])
    weight, offset = head()
    with torch.no_grad():
        hidden = random_backbone()(input_ids=ids).last_hidden_state[0, -1].double()
    return float(weight[0].double() @ hidden + (offset.double() if bias else 0))


def test_end_score_is_w_h_plus_b_by_hand_in_both_layouts(folders):
    for name, bias in (("early", False), ("later", True)):
        found = scorer(folders, name, batch_size=1)(PROMPTS, RESPONSES)
        expected = [by_hand(p.text, r, bias=bias) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
        assert found == pytest.approx(expected, abs=1e-6)
        assert found.std() > 0.1


def test_a_zero_bias_is_the_early_layout(folders):
    early, later = (scorer(folders, name)(PROMPTS, RESPONSES) for name in ("early", "zero-bias"))
    assert early == pytest.approx(later, abs=1e-6)


def test_a_batch_is_one_by_one(folders):
    one = scorer(folders, "later", batch_size=1)(PROMPTS, RESPONSES)
    for size in (2, 3, 8):
        assert np.abs(scorer(folders, "later", batch_size=size)(PROMPTS, RESPONSES) - one).max() < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_text_gets_the_same_score_alone_and_among_others(folders, dtype):
    made = scorer(folders, "later", dtype=dtype)
    alone = [made([prompt], [response])[0] for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    assert np.abs(made(PROMPTS, RESPONSES) - alone).max() < 1e-6


SMALL = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
FAMILIES = {
    "llama": lambda: random_backbone(),
    "gpt2": lambda: GPT2Model(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, bos_token_id=1, eos_token_id=2)
    ),
    "opt": lambda: OPTModel(OPTConfig(ffn_dim=24, word_embed_proj_dim=8, max_position_embeddings=64, **SMALL)),
    "bloom": lambda: BloomModel(BloomConfig(**SMALL)),
    "gpt_neox": lambda: GPTNeoXModel(
        GPTNeoXConfig(intermediate_size=24, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, **SMALL)
    ),
}


class FiftyTokens:
    """Just what is asked of a tokenizer when a model is saved."""

    eos_token_id, pad_token_id = 2, 2

    def get_vocab(self):
        return {str(number): number for number in range(50)}

    def save_pretrained(self, folder):
        pass


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_either_side_changes_no_score_of_any_family(family, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        backbone = FAMILIES[family]()
        width = backbone(input_ids=torch.tensor([[1]])).last_hidden_state.shape[-1]
        weight, bias = 3 * torch.randn(1, width), torch.randn(1)
    tokenizer = bpe_tokenizer() if family == "llama" else FiftyTokens()
    save_score_model(tmp_path, backbone, weight, bias, tokenizer)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"][0].endswith("ForScore")
    model = load_score_model(tmp_path)
    rows = [[5, 9, 2], [2, 2, 7, 11, 30, 8, 2], [4], [3, 17, 40, 41, 2]]
    longest = max(map(len, rows))
    with torch.no_grad():
        ones = [
            model.end_scores(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long), "cost") for row in rows
        ]
        one = torch.cat(ones)
        hidden = backbone.eval()(input_ids=torch.tensor([rows[1]])).last_hidden_state[0, -1]
        assert one[1].item() == pytest.approx((weight[0].double() @ hidden.double() + bias[0]).item(), abs=1e-5)
        for left in (True, False):
            pads = [[2] * (longest - len(row)) for row in rows]
            ids = [pad + row if left else row + pad for pad, row in zip(pads, rows, strict=True)]
            masks = [
                [0] * len(p) + [1] * len(r) if left else [1] * len(r) + [0] * len(p)
                for p, r in zip(pads, rows, strict=True)
            ]
            padded = model.end_scores(torch.tensor(ids), torch.tensor(masks), "cost")
            assert (padded - one).abs().max() < 1e-5
    assert one.std() > 1e-2


def test_role_comes_from_the_caller_and_a_cost_keeps_its_zero(folders):
    raw = scorer(folders, "later")(PROMPTS, RESPONSES)
    scale = np.sqrt(3.1875)
    # This config says score_type reward, as the published cost checkpoint does.
    cost = scorer(folders, "normalised", "cost")(PROMPTS, RESPONSES)
    reward = scorer(folders, "normalised", "reward")(PROMPTS, RESPONSES)
    assert cost == pytest.approx(raw / scale, abs=1e-5)
    assert reward == pytest.approx((raw + 0.0757) / scale, abs=1e-5)
    assert np.all(cost * raw > 0)
    for name in ("early", "later"):
        cost, reward = (scorer(folders, name, role)(PROMPTS, RESPONSES) for role in ("cost", "reward"))
        assert cost == pytest.approx(reward, abs=1e-6)


def test_a_normaliser_without_tensors_comes_from_the_config_or_is_refused(folders, tmp_path):
    bare = {name: tensor for name, tensor in later_tensors().items() if "normalizer" not in name}
    write(tmp_path, bare, LATER | {"do_normalize": True})
    found = scorer(tmp_path, ".", "reward")(PROMPTS, RESPONSES)
    raw = scorer(folders, "later")(PROMPTS, RESPONSES)
    assert found == pytest.approx((raw + 0.0757) / np.sqrt(3.1875), abs=1e-5)
    write(tmp_path, bare, LATER | {"do_normalize": True, "mean": None})
    with pytest.raises(MissingError, match=r"1 tensor missing: normalizer\.mean"):
        scorer(tmp_path, ".", "reward")


def test_the_end_token_is_appended_by_default_and_decides_the_score(folders):
    prompt, response = Prompt("hello"), "Hello! How can I help you today?"
    ended, open_ = (scorer(folders, "later", append_eos=flag)([prompt], [response])[0] for flag in (True, False))
    assert ended == pytest.approx(by_hand("hello", response), abs=1e-6)
    assert open_ == pytest.approx(by_hand("hello", response, end=""), abs=1e-6)
    assert abs(ended - open_) > 1e-2
    assert scorer(folders, "later")([prompt], [response])[0] == ended


def test_a_conversation_is_scored_whole(folders):
    history = (Turn("user", "hello"), Turn("assistant", "Hello!"))
    found = scorer(folders, "later")([Prompt("and you", history=history)], ["the answer"])
    assert found[0] == pytest.approx(by_hand("hello ASSISTANT:Hello!</s>USER: and you", "the answer"), abs=1e-6)
    with pytest.raises(DataError, match="no place for the system turn"):
        scorer(folders, "later")([Prompt("x", history=(Turn("system", "be kind"),))], ["y"])


def test_round_trip(tmp_path, folders):
    weight, bias = head()
    tokenizer = bpe_tokenizer(adds_bos=True)
    save_score_model(tmp_path / "raw", random_backbone(), weight, bias, tokenizer)
    assert scorer(tmp_path, "raw")(PROMPTS, RESPONSES) == pytest.approx(
        scorer(folders, "later")(PROMPTS, RESPONSES), abs=1e-6
    )
    # Two layers of nine tensors, embedding, final norm, head, bias, three buffers: 295 for one of 32 layers.
    saved = load_file(tmp_path / "raw" / "model.safetensors")
    assert saved.keys() == later_tensors().keys() and len(saved) == 9 * 2 + 7
    assert len(early_tensors()) == 10 * 2 + 3  # 323 for one of 32 layers
    assert saved["normalizer.count"].tolist() == [0]
    config = json.loads((tmp_path / "raw" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForScore"] and config["score_bias"] and not config["do_normalize"]
    assert str(tmp_path) not in (tmp_path / "raw" / "config.json").read_text()


def test_a_language_model_is_saved_without_its_head(tmp_path, folders):
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(random_backbone().config)
    model.model.load_state_dict(random_backbone().state_dict())
    save_score_model(tmp_path, model, *head(), bpe_tokenizer(adds_bos=True))
    assert scorer(tmp_path, ".")(PROMPTS, RESPONSES) == pytest.approx(
        scorer(folders, "later")(PROMPTS, RESPONSES), abs=1e-6
    )


def test_shards_of_an_index_and_a_head_of_a_language_model(tmp_path, folders):
    tensors = later_tensors() | {"lm_head.weight": torch.zeros(TOKENS, 16)}
    write(tmp_path, {}, LATER)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name].clone() for name in held}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, held in parts.items() for name in held}}))
    (tmp_path / "model-of-another.safetensors").write_bytes(b"not in the index")
    assert scorer(tmp_path, ".")(PROMPTS, RESPONSES) == pytest.approx(
        scorer(folders, "later")(PROMPTS, RESPONSES), abs=1e-6
    )
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(DataError, match="not in the folder"):
        scorer(tmp_path, ".")
    index.write_text(json.dumps({"weight_map": {"a": "model-3.safetensors"}}))
    with pytest.raises(MissingError, match=r"model-3.safetensors.*not there"):
        scorer(tmp_path, ".")


def without(name):
    return {key: tensor for key, tensor in later_tensors().items() if key != name}


BARE = {name: tensor for name, tensor in later_tensors().items() if "normalizer" not in name}


@pytest.mark.parametrize(
    ("tensors", "facts", "says"),
    [
        (later_tensors(), {"model_type": "no-such-model"}, "config.json cannot be used"),
        (later_tensors(), {"eos_token_id": 7}, "ends with token 2, its config says 7"),
        (BARE, {"do_normalize": True, "mean": 3}, "'mean' in config.json is 3"),
    ],
)
def test_what_does_not_fit_is_one_line_before_any_score(tmp_path, tensors, facts, says):
    write(tmp_path, tensors, LATER | facts)
    with pytest.raises(DataError, match=says) as caught:
        scorer(tmp_path, ".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "facts", "says"),
    [
        (without("model.norm.weight"), {}, "1 tensor missing: model.norm.weight"),
        (without("score_head.weight"), {}, "1 tensor missing: score_head.weight"),
        (without("score_head.bias"), {}, "1 tensor missing: score_head.bias"),
        (without("normalizer.var"), {}, "1 tensor missing: normalizer.var"),
        (without("normalizer.mean"), {"do_normalize": True}, "1 tensor missing: normalizer.mean"),
        (later_tensors() | {"model.extra": torch.zeros(1)}, {}, "1 tensor not part of this model: model.extra"),
        (later_tensors() | {"lm.head": torch.zeros(1)}, {}, "1 tensor not part of this model: lm.head"),
        (later_tensors(), {"intermediate_size": 32}, r"6 tensors of another shape: .*down_proj.weight \[16, 24\]"),
        (later_tensors(), {"num_hidden_layers": 3}, "9 tensors missing: .* and 6 more"),
        (later_tensors(), {"score_dim": 2}, r"4 tensors of another shape: normalizer.mean \[1\] \(needs \[2\]\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named_before_any_score(tmp_path, tensors, facts, says):
    write(tmp_path, tensors, LATER | facts)
    with pytest.raises(MissingError, match=says) as caught:
        scorer(tmp_path, ".")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_size_is_refused(tmp_path):
    for rows in (TOKENS - 1, TOKENS + 40):
        folder = tmp_path / str(rows)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            backbone = random_backbone(vocab_size=rows)
        tensors = later_tensors() | {"model.embed_tokens.weight": backbone.embed_tokens.weight.detach()}
        write(folder, tensors, LATER | {"vocab_size": rows})
        with pytest.raises(DataError, match=f"ids up to {TOKENS - 1}"):
            scorer(tmp_path, str(rows))
        with pytest.raises(DataError, match=f"ids up to {TOKENS - 1}"):
            save_score_model(tmp_path / "saved", backbone, *head(), bpe_tokenizer())
    assert not (tmp_path / "saved").exists()


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickled_objects_are_refused_and_not_run(tmp_path):
    folder = write(tmp_path / "model", {}, EARLY, pickled=True)
    weights = folder / "pytorch_model.bin"
    for content in (early_tensors() | {"trap": Trap(tmp_path / "sprung")}, Trap(tmp_path / "sprung")):
        torch.save(content, weights)
        with pytest.raises(DataError, match="is not plain weights and was not loaded") as caught:
            scorer(folder, ".")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()
    torch.save([torch.zeros(1)], weights)
    with pytest.raises(DataError, match="expected tensors by name, found list"):
        scorer(folder, ".")
    torch.save(early_tensors(), weights)
    whole = weights.read_bytes()
    for content in (b"", b"rubbish", whole[: len(whole) // 2], bytes(range(256)) * 9, b"\x80\x02}q\x00."):
        weights.write_bytes(content)
        with pytest.raises(DataError, match="is not plain weights|is missing") as caught:
            scorer(folder, ".")
        assert "\n" not in str(caught.value)
    # Where both are there, the safe one is read and the other never opened.
    save_file(later_tensors(), folder / "model.safetensors")
    assert len(scorer(folder, ".")(PROMPTS, RESPONSES)) == len(PROMPTS)


@pytest.mark.parametrize(
    ("keys", "error", "says"),
    [
        ({"model": "none"}, MissingError, "no such file or folder"),
        ({"model": "empty"}, MissingError, "no config.json"),
        ({"model": "later", "template": "beever"}, ConfigError, "key 'template'"),
        ({"model": "later", "appendeos": True}, ConfigError, "did you mean 'append_eos'"),
    ],
)
def test_mistakes_of_the_config(folders, keys, error, says):
    (folders / "empty").mkdir(exist_ok=True)
    bpe_tokenizer().save_pretrained(folders / "empty")
    with pytest.raises(error, match=says):
        make_scorer({"kind": "score-checkpoint", **keys}, direction="cost", folder=folders)


def test_a_text_that_is_too_long_is_never_cut(folders):
    with pytest.raises(ScorerError, match="prompt 2 needs 51 tokens, max_length is 50"):
        scorer(folders, "later", max_length=50)(PROMPTS, RESPONSES)


def test_several_scores_a_text_are_refused(tmp_path):
    save_score_model(tmp_path, random_backbone(), torch.zeros(2, 16), torch.zeros(2), bpe_tokenizer())
    with pytest.raises(ConfigError, match="gives 2 scores a text; one is needed"):
        scorer(tmp_path, ".")


def test_revision_follows_what_decides_the_numbers_and_nothing_else(folders):
    made = [
        scorer(folders, "early"), scorer(folders, "later"), scorer(folders, "later", "reward"),
        scorer(folders, "later", append_eos=False), scorer(folders, "later", template="plain"),
    ]  # fmt: skip
    assert len({one.revision for one in made}) == len(made)
    assert scorer(folders, "later", batch_size=3).revision == made[1].revision
    assert made[1].id == "score-checkpoint(later)"


def test_loading_shows_no_progress_and_leaves_the_bars_of_others_on(folders, capfd):
    logging.enable_progress_bar()
    scorer(folders, "later")
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()
