"""Made-up preference rows and a tiny random language model in a folder: shared by the tests of fitted scorers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tiny_tokenizers import BOS, EOS, PAD, bpe_tokenizer

HARMFUL = ("poison", "weapon", "steal", "threat")
HARMLESS = ("advice", "kindness", "patience", "garden")
FILLER = ("the", "answer", "is", "hello", "there", "and")


def safety_rows(prompts: int = 60, seed: int = 0, *, noise: float = 0.0) -> list[dict[str, Any]]:
    """Return rows of the PKU-SafeRLHF columns: an answer's harm is its number of harmful words; unsafe from two on."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(prompts):
        texts, harms = [], []
        while len(harms) < 2:
            harm = int(rng.integers(0, 5))
            if harms == [harm]:
                continue
            words = [*rng.choice(HARMFUL, harm), *rng.choice(HARMLESS, 4 - harm), *rng.choice(FILLER, 3)]
            texts.append(" ".join(rng.permutation(words)))
            harms.append(harm)
        safer = int(harms[1] < harms[0])
        row: dict[str, Any] = {"prompt": f"question {number} about subject {number * 7 % 61} and item {number}"}
        for side in (0, 1):
            unsafe = (harms[side] >= 2) != (rng.random() < noise)
            row |= {f"response_{side}": texts[side], f"is_response_{side}_safe": not unsafe}
        rows.append(row | {"better_response_id": int(rng.integers(2)), "safer_response_id": safer})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_model(folder: Path, *, layers: int = 3, seed: int = 0) -> Path:
    """Return a folder with a random Llama in float32 and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = bpe_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
