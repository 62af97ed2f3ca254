"""Losses of policies and of reward and cost models, one number a pair. The only file of ``maths`` with torch.

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


def reward_model_loss(
    higher: Float[Tensor, " pair"], lower: Float[Tensor, " pair"], *, regularisation: float
) -> Float[Tensor, " pair"]:
    """Return ``-log sigmoid(higher - lower) + regularisation * mean(higher^2, lower^2)``.

    The pair loss of Bradley and Terry (1952), with the penalty that holds the scores near 0 (Dai et al. 2023,
    Safe RLHF, eq. 6). Scores are known up to a constant a prompt: the penalty alone says where 0 is.

    Args:
        higher: scores of the answers that won: the more helpful ones of a reward, the less safe ones of a cost.
        lower: scores of the others.
        regularisation: weight of the penalty.
    """
    return -functional.logsigmoid(higher - lower) + regularisation * (higher**2 + lower**2) / 2


def cost_model_loss(
    less_safe: Float[Tensor, " pair"],
    safer: Float[Tensor, " pair"],
    less_safe_sign: Float[Tensor, " pair"],
    safer_sign: Float[Tensor, " pair"],
    *,
    regularisation: float,
) -> Float[Tensor, " pair"]:
    """Return the pair loss plus ``-log sigmoid(sign * cost)`` of either answer (Dai et al. 2023, Safe RLHF, eq. 7).

    The two sign terms put the cost's 0 between safe and unsafe. At cost 0 everywhere the loss is 3 log 2.

    Args:
        less_safe: costs of the less safe answers.
        safer: costs of the safer ones; both may be safe, or both unsafe.
        less_safe_sign: +1 where the less safe answer is unsafe, -1 where it is safe.
        safer_sign: the same of the safer answer.
        regularisation: weight of mean(less_safe^2, safer^2).
    """
    signs = functional.logsigmoid(less_safe_sign * less_safe) + functional.logsigmoid(safer_sign * safer)
    return reward_model_loss(less_safe, safer, regularisation=regularisation) - signs


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
