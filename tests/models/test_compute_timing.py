"""The timing chooses what it measured to be fastest, and leaves the thread count as it was."""

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

from dualign.models import language_model as compute
from engine_parts import language_model


def test_the_faster_dtype_is_chosen(monkeypatch) -> None:
    threads = torch.get_num_threads()
    for fast, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        monkeypatch.setattr(
            compute, "gigaflops", lambda model, dtype, seconds, fast=fast: 9.0 if dtype is fast else 2.0
        )
        choice = compute.choose_compute(language_model().model)
        assert (choice.dtype, choice.threads) == (name, 1)
    assert torch.get_num_threads() == threads


def test_it_takes_about_the_time_it_is_given() -> None:
    choice = compute.choose_compute(language_model().model, seconds=0.1)
    assert choice.seconds < 5
    assert min(choice.gigaflops.values()) > 0


def test_a_model_that_also_sees_is_timed_by_its_text_part() -> None:
    text = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8}
    sight = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=Gemma3TextConfig(**text, num_attention_heads=2, num_key_value_heads=1),
        vision_config=SiglipVisionConfig(**sight, image_size=16, patch_size=8), image_token_index=5,
    )  # fmt: skip
    seeing = Gemma3ForConditionalGeneration(config)
    assert min(compute.choose_compute(seeing, seconds=0.1).gigaflops.values()) > 0
