"""What a model can hold is read from it: positions, rows of the embedding, a padding token without one."""

import json
from dataclasses import replace

import pytest
import torch
from pydantic import BaseModel
from transformers import (
    BloomConfig,
    DebertaV2Config,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    OPTConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from command_line import dualign
from dualign.config import load_config
from dualign.errors import ConfigError, DataError, MissingError, UsageError
from dualign.job.assembly import _model
from dualign.job.entry import check_only
from dualign.models.loading import load_language_model, save_model
from dualign.models.sampler import TransformersSampler
from dualign.models.tensors import UNLIMITED, check_vocabulary, positions, prompt_room
from dualign.protocols import Policy, Sampling
from dualign.records import Prompt
from dualign.scorers.encoding import usable
from dualign.scorers.table import make_scorer
from sampling_parts import PROMPTS, tiny_language_model, tiny_model, tiny_tokenizer
from tiny_jobs import LETTERS, SPECIAL, job, letter_tokenizer, write_config

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 1e4}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GPT2Config(n_positions=64), 64),
        (OPTConfig(max_position_embeddings=64), 64),
        (LlamaConfig(max_position_embeddings=128), 128),
        (LlamaConfig(max_position_embeddings=128, rope_parameters=YARN), 512),
        (LlamaConfig(max_position_embeddings=256, rope_parameters=LLAMA3), 256),
        (RobertaConfig(max_position_embeddings=66, pad_token_id=1), 64),
        (DebertaV2Config(relative_attention=True, position_biased_input=False), None),
        (BloomConfig(), None),
    ],
)
def test_positions_are_those_that_texts_can_fill(config, expected):
    assert positions(config) == expected


def test_a_roberta_takes_just_so_many_tokens():
    config = RobertaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=20, pad_token_id=1,
    )  # fmt: skip
    model, longest = RobertaModel(config).eval(), positions(config)
    model(torch.full((1, longest), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, longest + 1), 5))


def test_a_default_gives_way_and_a_stated_length_does_not():
    class Spec(BaseModel):
        max_length: int = 512

    few, unlimited = LlamaConfig(max_position_embeddings=64), BloomConfig()
    assert usable(Spec(), few, "max_length") == 64
    assert usable(Spec(max_length=512), unlimited, "max_length") == 512
    with pytest.raises(ConfigError, match="max_length 65: the model has 64 positions; give at most 64"):
        usable(Spec(max_length=65), few, "max_length")
    names = ("p", "r")
    assert [prompt_room(p, 24, 64, names=names) for p in (None, 40, 1)] == [40, 40, 1]
    assert [prompt_room(p, 24, None, names=names) for p in (None, 900)] == [UNLIMITED, 900]
    with pytest.raises(UsageError, match="p 41, r 24: .* 64 positions .*; p can be 40 at most"):
        prompt_room(41, 24, 64, names=names)
    with pytest.raises(UsageError, match="r 64: the model has 64 positions"):
        prompt_room(None, 64, 64, names=names)


def test_a_padding_token_without_a_row_changes_no_draw(tmp_path):
    good = tiny_tokenizer()
    save_model(tiny_model(dtype="float32"), good, tmp_path / "good")
    save_model(tiny_model(dtype="float32"), good, tmp_path / "beyond")
    good.add_special_tokens({"pad_token": "[PAD]"})
    good.save_pretrained(tmp_path / "beyond")
    drawn = []
    for name in ("good", "beyond"):
        model = load_language_model(tmp_path / name)
        assert model.pad < 12 and model.pad != model.eos
        sampler = TransformersSampler(model)
        rows = sampler.generate(Policy("x"), PROMPTS, 2, sampling=Sampling(max_new_tokens=6), seed=0, stage="s")
        drawn.append([[response.tokens for response in row] for row in rows])
    assert good.pad_token_id == 12 and drawn[0] == drawn[1]


@pytest.mark.parametrize("more", [{"additional_special_tokens": ["<x>"]}, {"eos_token": "<x>"}, {"words": ["zz"]}])
def test_other_tokens_without_a_row_are_named(tmp_path, more):
    tokenizer = tiny_tokenizer()
    save_model(tiny_model(dtype="float32"), tokenizer, tmp_path)
    tokenizer.add_tokens(more["words"]) if "words" in more else tokenizer.add_special_tokens(more)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(MissingError, match=r"1 tokens .* no row among the 12 of the embedding: '(<x>|zz)' \(12\)"):
        load_language_model(tmp_path)
    check_vocabulary(tokenizer, 13, "x")


def test_no_prompt_beyond_the_positions_is_sampled():
    model = tiny_language_model()
    sampler, long = TransformersSampler(model), [Prompt("a " * 123)]
    with pytest.raises(DataError, match="124 tokens, at most 123"):
        sampler.generate(Policy("x"), long, 1, sampling=Sampling(max_new_tokens=5), seed=0, stage="s")
    sampler.generate(Policy("x"), long, 1, sampling=Sampling(max_new_tokens=4), seed=0, stage="s")
    strange = TransformersSampler(replace(model, template=lambda prompt: [1, 12]))
    with pytest.raises(DataError, match="token 12 has no row among the 12"):
        strange.generate(Policy("x"), PROMPTS, 1, sampling=Sampling(max_new_tokens=4), seed=0, stage="s")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a GPT-2 of 64 positions that writes letters, prompts and a classifier of 30 positions."""
    root = tmp_path_factory.mktemp("limits")
    size = {"vocab_size": len(SPECIAL) + len(LETTERS), "bos_token_id": 1, "eos_token_id": 2}
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64, **size))
    (root / "job.json").write_text(json.dumps(job(root)))
    save_model(model.eval(), letter_tokenizer(), root / "gpt2")
    classifier = RobertaForSequenceClassification(
        RobertaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_labels=1,
            max_position_embeddings=31,
            pad_token_id=0,
            **size,
        )  # fmt: skip
    )
    classifier.save_pretrained(root / "judge")
    letter_tokenizer().save_pretrained(root / "judge")
    return root


ROOM = {"policy": {"max_prompt_tokens": None}}
JUDGE = {"kind": "sequence-classifier", "model": "judge", "template": "response"}


def inside(scorer):
    return {"kind": "weighted-sum", "terms": [{"weight": 1.0, "scorer": scorer}]}


def dry_run(folder, **changes):
    """Return what the dry run finds of a job whose sections are changed; none takes a key out."""
    config = json.loads((folder / "job.json").read_text())
    config["policy"]["model"] = str(folder / "gpt2")
    for section, keys in changes.items():
        merged = config[section] | keys
        config[section] = {key: value for key, value in merged.items() if value is not None}
    return check_only(load_config(write_config(folder, config)), folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "policy.max_prompt_tokens 64, sampling.max_new_tokens 8: .* 64 positions .* can be 56 at most"),
        ({"sampling": {"max_new_tokens": 64}}, "sampling.max_new_tokens 64: the model has 64 positions"),
        (ROOM | {"sampling": {"max_new_tokens": 60}}, "all 36 .* longer than 4 tokens"),
        ({"policy": {"max_prompt_tokens": 5}}, "raise policy.max_prompt_tokens"),
        (ROOM | {"reward": {"scorer": JUDGE | {"max_length": 40}}}, "scorer of reward: max_length 40: .* 30 positions"),
        (ROOM | {"reward": {"scorer": inside(JUDGE | {"max_length": 31})}}, "reward.terms.*: max_length 31: .* 30 p"),
    ],
)  # fmt: skip
def test_the_dry_run_refuses_lengths_beyond_the_model(folder, changes, says):
    with pytest.raises(ConfigError, match=says) as caught:
        dry_run(folder, **changes)
    assert "\n" not in str(caught.value)


def test_defaults_give_way_to_the_models_and_dropped_prompts_are_counted(folder):
    found = dry_run(folder, policy={"max_prompt_tokens": None}, reward={"scorer": JUDGE})
    assert found["notes"][-1] == "0 prompts dropped: longer than 56 tokens"
    config = load_config(folder / "job.yaml")
    assert _model(config).max_prompt_tokens == 56
    scorer = make_scorer(JUDGE, direction="reward", folder=folder)
    with pytest.raises(Exception, match="needs 31 tokens, max_length is 30"):
        scorer([Prompt("a")], ["a" * 31])
    assert len(scorer([Prompt("a")], ["a" * 30])) == 1
    with pytest.raises(ConfigError, match="max_length 31: the model has 30 positions"):
        make_scorer(JUDGE | {"max_length": 31}, direction="reward", folder=folder)


def test_the_dry_run_looks_at_the_vocabulary(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tokenizer = letter_tokenizer()
    tokenizer.add_tokens(["zz"])
    tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(MissingError, match=r"'zz' \(14\)"):
        dry_run(tmp_path, policy={"max_prompt_tokens": 20})


def test_sample_takes_the_length_from_the_model_or_from_its_option(folder, tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a" * 50}) + "\n")
    call = ("sample", folder / "gpt2", tmp_path / "p.jsonl", "--out", tmp_path / "o.jsonl", "--template", "plain")
    dualign(*call).refused(2, "--max-new-tokens 128", "64 positions")
    dualign(*call, "--max-new-tokens", 20).refused(65, "50 tokens, at most 44")
    dualign(*call, "--max-new-tokens", 8, "--max-prompt-tokens", 60).refused(2, "can be 56 at most")
    dualign(*call, "--max-new-tokens", 8, "--max-prompt-tokens", 40).refused(65, "50 tokens, at most 40")
    assert dualign(*call, "--max-new-tokens", 14).code == 0
