"""Which attention kernel is used, seen in the graph of the pass, and that all give one gradient."""

from __future__ import annotations

import pytest
import torch

from dualign.engine.attention import SHORT, attention_kernel
from engine_parts import tiny_llama

FUSED = "ScaledDotProductFlashAttentionForCpuBackward0"


def nodes(result: torch.Tensor) -> set[str]:
    """Return the names of all nodes of the graph that made ``result``."""
    seen, names, waiting = set(), set(), [result.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        names.add(type(node).__name__)
        waiting.extend(after for after, _ in node.next_functions)
    return names


def loss_of(model: torch.nn.Module, announced: int) -> torch.Tensor:
    """Return a scalar of the pass over two rows of 24 tokens, with the kernel for rows of ``announced`` tokens."""
    ids = torch.arange(48).view(2, 24) % 11
    with attention_kernel(model, announced):
        output: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return output.float().square().mean()


@pytest.mark.parametrize(
    ("dtype", "width", "fused"),
    [(torch.bfloat16, 24, False), (torch.bfloat16, SHORT + 1, True), (torch.float32, 24, True)],
)
def test_the_plain_product_is_used_for_short_rows_in_bfloat16_alone(
    dtype: torch.dtype, width: int, fused: bool
) -> None:
    assert (FUSED in nodes(loss_of(tiny_llama().to(dtype), width))) == fused


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
