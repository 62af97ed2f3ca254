"""The timing chooses what it measured to be fastest, and leaves the thread count as it was."""

import torch

from dualign.engine import timing
from engine_parts import language_model


def test_the_faster_dtype_is_chosen(monkeypatch) -> None:
    threads = torch.get_num_threads()
    for fast, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        monkeypatch.setattr(timing, "gigaflops", lambda model, dtype, seconds, fast=fast: 9.0 if dtype is fast else 2.0)
        choice = timing.choose_compute(language_model())
        assert (choice.dtype, choice.threads) == (name, 1)
    assert torch.get_num_threads() == threads


def test_it_takes_about_the_time_it_is_given() -> None:
    choice = timing.choose_compute(language_model(), seconds=0.1)
    assert choice.seconds < 5
    assert min(choice.gigaflops.values()) > 0
