"""Which attention kernel is used, seen in the graph of the pass, and that all give one gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dualign.models.log_probs import SHORT, attention_kernel
from engine_parts import tiny_llama

FUSED = "ScaledDotProductFlashAttentionForCpuBackward0"


def attention_dtypes(result: torch.Tensor) -> set[torch.dtype]:
    """Return the dtypes of the queries that the fused kernel kept in the graph of ``result``."""
    seen, dtypes, waiting = set(), set(), [result.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == FUSED:
            dtypes.add(node._saved_query.dtype)
        waiting.extend(after for after, _ in node.next_functions)
    return dtypes


def loss_of(model: torch.nn.Module, announced: int) -> torch.Tensor:
    """Return a scalar of the pass over two rows of 24 tokens, with the kernel for rows of ``announced`` tokens."""
    ids = torch.arange(48).view(2, 24) % 11
    with attention_kernel(model, announced):
        output: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return output.float().square().mean()


@pytest.mark.parametrize(
    ("dtype", "announced", "computed"),
    [
        (torch.bfloat16, SHORT, torch.float32),
        (torch.bfloat16, SHORT + 1, torch.bfloat16),
        (torch.float32, SHORT, torch.float32),
        (torch.float64, SHORT, torch.float64),
    ],
)
def test_short_rows_in_bfloat16_alone_have_attention_in_float32(
    dtype: torch.dtype, announced: int, computed: torch.dtype
) -> None:
    assert attention_dtypes(loss_of(tiny_llama().to(dtype), announced)) == {computed}


@pytest.mark.parametrize("announced", [24, SHORT + 1])
def test_both_kernels_give_the_gradient_of_float32(announced: int) -> None:
    model, exact = tiny_llama().to(torch.bfloat16), tiny_llama().float()
    loss_of(model, announced).backward()
    loss_of(exact, announced).backward()
    for one, other in zip(model.parameters(), exact.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        alike = torch.nn.functional.cosine_similarity(one.grad.float().flatten(), other.grad.flatten(), dim=0)
        assert alike.item() > 0.99
