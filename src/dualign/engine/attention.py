"""Which attention kernel a pass through the model uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

SHORT = 256
"""Tokens a row up to which attention in bfloat16 is computed in float32 on a CPU."""


def attention_kernel(model: nn.Module, width: int, *, twice: bool = False) -> AbstractContextManager[Any]:
    """Return the context in which rows of ``width`` tokens are read; ``twice``: the pass is differentiated twice.

    Fused kernels have no second derivative. In bfloat16 the CPU's has a backward pass that takes two to five times as
    long as float32's on short rows; at 400 tokens both are alike (docs/log.md).
    """
    if twice:
        return sdpa_kernel(SDPBackend.MATH)
    parameter = next(model.parameters())
    slow = parameter.device.type == "cpu" and parameter.dtype == torch.bfloat16 and width <= SHORT
    return InFloat32() if slow else nullcontext()


class InFloat32(TorchFunctionMode):
    """Computes attention, and nothing else, in float32, and returns it in the dtype of its inputs."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],  # noqa: ARG002
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return what ``func`` returns for these arguments."""
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = {name: _wide(value) for name, value in (kwargs or {}).items()}
        return func(*map(_wide, args), **named).to(args[0].dtype)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
