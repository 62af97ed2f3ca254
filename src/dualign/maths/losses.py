"""Pairwise losses, one number a pair, and the label modes that soften them. The only file of ``maths`` with torch.

Log-ratios in, losses out; hyper-parameters by keyword; the caller reduces.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

PairwiseLoss = Callable[[Tensor, Tensor], Tensor]


def dpo(preferred: Float[Tensor, " pair"], other: Float[Tensor, " pair"], *, beta: float) -> Float[Tensor, " pair"]:
    """Return ``-log sigmoid(beta * margin)`` (Rafailov et al. 2023, eq. 7)."""
    return -functional.logsigmoid(beta * (preferred - other))


def ipo(preferred: Float[Tensor, " pair"], other: Float[Tensor, " pair"], *, beta: float) -> Float[Tensor, " pair"]:
    """Return ``(margin - 1 / (2 beta))^2`` (Azar et al. 2023, eq. 17; sums, not means, of log-probabilities)."""
    return (preferred - other - 1 / (2 * beta)) ** 2


def soft(logit: Float[Tensor, " pair"], generator: torch.Generator) -> Float[Tensor, " pair"]:  # noqa: ARG001
    """Return ``sigmoid(logit)``, the Bradley-Terry probability that the first side wins."""
    return torch.sigmoid(logit)


def bernoulli(logit: Float[Tensor, " pair"], generator: torch.Generator) -> Float[Tensor, " pair"]:
    """Return winners drawn with probability ``sigmoid(logit)``: 1 where the first side wins, else 0."""
    return torch.bernoulli(torch.sigmoid(logit), generator=generator)


def hard(logit: Float[Tensor, " pair"], generator: torch.Generator) -> Float[Tensor, " pair"]:  # noqa: ARG001
    """Return 1 where the logit is positive, 0 where negative, 1/2 at a tie.

    There is no finite optimum then: the policy runs towards a deterministic ranking.
    """
    return (1 + torch.sign(logit)) / 2


LOSSES = {"dpo": dpo, "ipo": ipo}
LABELS = {"soft": soft, "bernoulli": bernoulli, "hard": hard}
