"""Which attention kernel a pass through the model uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

SHORT = 256
"""Tokens a row up to which the plain product is used for bfloat16 on a CPU. Its memory grows with their square."""


@contextlib.contextmanager
def attention_kernel(model: nn.Module, width: int, *, twice: bool = False) -> Iterator[None]:
    """Choose the kernel for rows of ``width`` tokens; ``twice``: the pass is differentiated twice.

    Fused kernels have no second derivative. In bfloat16 the CPU's backward pass of them takes 1.6 to 3 times as long
    as the plain product's on short rows; at 400 tokens both are alike, and at 1,000 the fused one is three times
    as fast (docs/log.md).
    """
    parameter = next(model.parameters())
    slow = parameter.device.type == "cpu" and parameter.dtype == torch.bfloat16 and width <= SHORT
    with sdpa_kernel(SDPBackend.MATH) if twice or slow else contextlib.nullcontext():
        yield
