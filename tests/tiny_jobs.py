"""A whole ``dualign train`` job that takes seconds: a random Llama that reads and writes single letters."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

LETTERS = "abcdefghij "
SPECIAL = ["<pad>", "<s>", "</s>"]


def letter_tokenizer(letters: str = LETTERS) -> Any:
    """Return a tokenizer of one letter a token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *letters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def letter_model(folder: Path, seed: int = 0, letters: str = LETTERS) -> Path:
    """Return ``folder`` with a random Llama in it, in Hugging Face's format."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from dualign.models.loading import save_model

    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(letters), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=96, initializer_range=0.15,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    save_model(model.eval(), letter_tokenizer(letters), folder)
    return folder


def prompt_file(path: Path, count: int, seed: int) -> Path:
    """Return ``path`` with ``count`` prompts of three random words, so that no two are near duplicates."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list(LETTERS[:-1]), 6)) for _ in range(3 * count)]
    rows = [{"prompt": " ".join(words[3 * k : 3 * k + 3])} for k in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def job(folder: Path) -> dict[str, Any]:
    """Return the config of a small real job whose model and prompts are made in ``folder``."""
    letter_model(folder / "model")
    prompt_file(folder / "risky.jsonl", 120, seed=1)
    prompt_file(folder / "benign.jsonl", 24, seed=2)
    return {
        "policy": {"model": str(folder / "model"), "template": "plain", "max_prompt_tokens": 64},
        "data": {
            "sources": [
                {
                    "path": "risky.jsonl",
                    "columns": {"label": "risky"},
                    "splits": {"train": 24, "tune": 30, "calibration": 50, "report": 6},
                },
                {"path": "benign.jsonl", "columns": {"label": "benign"}, "splits": {"train": 12, "report": 6}},
            ]
        },
        "reward": {"scorer": {"kind": "length", "unit": "characters"}},
        "constraints": [
            {
                "name": "letter",
                "scorer": {"kind": "regex", "pattern": "a"},
                "where": {"label": "risky"},
                "limit": 0.5,
                "cap": 1.0,
            }
        ],
        "method": {"start": 8.0, "max_rounds": 2},
        "training": {"beta": 0.3, "learning_rate": 2e-2, "num_train_epochs": 2, "lora_r": 4, "dtype": "float32"},
        "sampling": {"responses_per_prompt": 4, "max_new_tokens": 8},
        "run": {"name": "tiny", "seed": 3},
    }


def pair_file(path: Path, prompts: Path) -> list[dict[str, str]]:
    """Write two pairs for each of the first twenty prompts, and rows that teach nothing."""
    rng = np.random.default_rng(0)
    texts = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]
    rows = []
    for text in texts[:20]:
        for _ in range(2):
            good, bad = ("".join(rng.choice(list("abcdefgh"), 6)) for _ in range(2))
            rows.append({"prompt": text, "chosen": good, "rejected": bad})
    rows.append({"prompt": texts[0], "chosen": "bcd", "rejected": "bcd"})
    rows.append({**rows[0], "chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def write_config(folder: Path, config: object, name: str = "job.yaml") -> Path:
    """Return the path of ``config`` as YAML; text is written as it is."""
    path = folder / name
    path.write_text(config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False))
    return path
