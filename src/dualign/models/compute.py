"""Which dtype and how many threads compute fastest on this machine, by a second of timing."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

POSITIONS = 256
"""Rows of the timed product: about a micro-step of short replies."""


@dataclass(frozen=True, slots=True)
class ComputeChoice:
    """What was chosen, and the figures it was chosen by; a run stores it and keeps to it on resume."""

    dtype: str
    """``float32`` or ``bfloat16``."""
    threads: int
    gigaflops: Mapping[str, float]
    """Measured speed by ``dtype/threads``."""
    seconds: float
    """What the timing took."""


def choose_compute(model: Any, *, seconds: float = 1.0) -> ComputeChoice:
    """Return the fastest of {float32, bfloat16} x {1, all} threads on a product of the model's shape, on its device.

    Two spinning threads on a busy machine can be slower than one, and bfloat16 can be 4 times faster or slower
    than float32: neither can be read off the machine's name. More threads must win by a tenth to be taken; beside an
    accelerator they stay as they are.
    """
    import torch

    started = time.perf_counter()
    before = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = sorted({1, cores}) if model.device.type == "cpu" else [before]
    candidates = [(dtype, threads) for threads in counts for dtype in (torch.float32, torch.bfloat16)]
    speeds: dict[str, float] = {}
    best, best_speed = candidates[0], 0.0
    try:
        for dtype, threads in candidates:
            torch.set_num_threads(threads)
            speed = gigaflops(model, dtype, seconds / len(candidates))
            speeds[f"{str(dtype).removeprefix('torch.')}/{threads}"] = round(speed, 2)
            if speed > best_speed * (1.1 if threads > best[1] else 1.0):
                best, best_speed = (dtype, threads), speed
    finally:
        torch.set_num_threads(before)
    name = str(best[0]).removeprefix("torch.")
    return ComputeChoice(name, best[1], speeds, time.perf_counter() - started)


def gigaflops(model: Any, dtype: object, seconds: float) -> float:
    """Return the gigaflops of the multi-layer perceptron's product, after one call to warm up."""
    import torch

    config = model.config.get_text_config()
    width: int = config.hidden_size
    stated = getattr(config, "intermediate_size", None)
    wide: int = stated if isinstance(stated, int) else 4 * width
    device = model.device
    hidden = torch.ones(POSITIONS, width, dtype=dtype, device=device)  # type: ignore[call-overload]
    weight = torch.ones(wide, width, dtype=dtype, device=device)  # type: ignore[call-overload]

    def product() -> None:
        torch.nn.functional.linear(hidden, weight)
        if device.type == "cuda":
            torch.cuda.synchronize()

    product()
    calls, started = 0, time.perf_counter()
    while calls < 3 or time.perf_counter() - started < seconds:
        product()
        calls += 1
    elapsed = time.perf_counter() - started
    return 2e-9 * calls * POSITIONS * wide * width / elapsed
