"""A tiny random Llama in float64 and groups for it: shared by the tests of the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dualign.models.language_model import LanguageModel
from dualign.protocols import Sampling
from dualign.records import Group, Prompt, Response
from dualign.train.settings import TrainingSettings
from dualign.train.transformer import TransformerBackend

VOCABULARY, EOS, PAD = 40, 1, 0


class Norm(nn.Module):
    """RMS norm in the model's own dtype: the library's rounds to float32, which hides what 1e-10 is to show."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = weight, epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)


def tiny_llama(seed: int = 0, tied: bool = False) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, tie_word_embeddings=tied,
        pad_token_id=PAD, bos_token_id=2, eos_token_id=EOS,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).double().eval()
    for layer in model.model.layers:
        for name in ("input_layernorm", "post_attention_layernorm"):
            setattr(layer, name, Norm(getattr(layer, name).weight, 1e-6))
    model.model.norm = Norm(model.model.norm.weight, 1e-6)
    return model


class Letters:
    """Stand in for a tokenizer: one token a letter, none of them special."""

    all_special_ids: tuple[int, ...] = ()
    unk_token_id = None
    chat_template = None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(c) % 30 for c in text]}

    def convert_tokens_to_ids(self, token: str) -> None:  # noqa: ARG002 (it knows no token by a name)
        return None

    def get_added_vocab(self) -> dict[str, int]:
        return {}


letters = Letters()


def language_model(model: Any = None, **changes: Any) -> LanguageModel:
    return LanguageModel(
        model=tiny_llama() if model is None else model,
        tokenizer=letters,
        template=lambda prompt: [2] + [3 + ord(c) % 30 for c in prompt.text],
        eos=EOS, pad=PAD, max_prompt_tokens=20, max_response_tokens=12, **changes,
    )  # fmt: skip


def groups(n: int = 6, k: int = 3, seed: int = 5) -> list[Group]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        prompt = Prompt("".join(chr(97 + c) for c in rng.integers(0, 26, rng.integers(3, 9))) + str(i))
        responses = tuple(
            Response("", tokens=(*rng.integers(3, VOCABULARY, rng.integers(2, 8)).tolist(), EOS)) for _ in range(k)
        )
        made.append(Group(prompt, responses, rng.normal(size=k), rng.normal(size=(k, 1))))
    return made


def independent_log_prob(model: Any, prompt: tuple[int, ...], response: tuple[int, ...], temperature: float = 1.0):
    """One response at a time, all logits, nothing of ours."""
    ids = torch.tensor([prompt + response])
    logits = model(input_ids=ids).logits[0] / temperature
    table = torch.log_softmax(logits, -1)
    return sum(table[len(prompt) - 1 + t, token] for t, token in enumerate(response))


def backend(model: LanguageModel, folder: Path, **settings: Any) -> TransformerBackend:
    chosen = {"learning_rate": 1e-2, "warmup_steps": 1, "lora_r": 4, "per_device_train_batch_size": 2} | settings
    return TransformerBackend(
        model, settings=TrainingSettings(**chosen), sampler=None,  # type: ignore[arg-type]
        sampling=Sampling(temperature=model.temperature), folder=folder,
    )  # fmt: skip
