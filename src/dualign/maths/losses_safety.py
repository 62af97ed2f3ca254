"""Losses that read a safety flag of each answer: SafeDPO's margin and BFPO's targets, one number a pair."""

import torch
from torch import Tensor
from torch.nn import functional

BFPO_GAIN = 3.0
BFPO_SHIFT = 0.5
"""b1 and alpha of BFPO's released program; its b3 is 1 / (b1 - 1)."""


def safedpo(
    preferred: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], *, beta: float, safety_margin: float
) -> Tensor:
    """Return ``-log sigmoid(beta h - (u_other - u_preferred) safety_margin)``, 0 where both answers are unsafe.

    A side is (log-ratio, unsafe flag 0 or 1). Kim et al. 2025, arXiv 2505.20065, on pairs where the safe answer of a
    safe and an unsafe one is the preferred one; pairs of two unsafe answers are dropped there, which is the 0 here.
    """
    (first, unsafe), (second, other_unsafe) = preferred, other
    losses = -functional.logsigmoid(beta * (first - second) - (other_unsafe - unsafe) * safety_margin)
    return torch.where(unsafe * other_unsafe > 0, torch.zeros_like(losses), losses)


def bfpo_target(safe: Tensor, other_safe: Tensor) -> Tensor:
    """Return ``t = b1 b3 s_w - b3 s_l - alpha`` of flags (1 is safe): 0.5, 1, -0.5, -1 at (1,1), (1,0), (0,0), (0,1).

    Zhang et al. 2024, arXiv 2408.15313, with the constants of its released program.
    """
    slope = 1 / (BFPO_GAIN - 1)
    return BFPO_GAIN * slope * safe - slope * other_safe - BFPO_SHIFT


def bfpo(preferred: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], *, beta: float) -> Tensor:
    """Return ``(h - t / beta)^2``; a side is (log-ratio, safe flag 0 or 1). Zhang et al. 2024, arXiv 2408.15313."""
    (first, safe), (second, other_safe) = preferred, other
    return (first - second - bfpo_target(safe, other_safe) / beta) ** 2
