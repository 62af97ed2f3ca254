"""Losses against wrong labels and unequal pairs: smoothing, two coefficients, a penalty on the input's gradient.

As in ``losses``: log-ratios in, one number a pair out, hyper-parameters by keyword; the caller reduces.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from dualign.maths.losses import PairwiseLoss

SMALLEST_MEAN_SQUARE = 1e-12
"""Below this mean square a root-mean-square penalty goes on as a parabola: at 0 a root has no gradient."""


def smoothed(loss: PairwiseLoss, *, smoothing: float) -> PairwiseLoss:
    """Return ``(1 - smoothing) loss(preferred, other) + smoothing loss(other, preferred)``.

    With the DPO loss it is conservative DPO: a share ``smoothing`` of the labels is held to be wrong.
    """

    def expected(preferred: Tensor, other: Tensor) -> Tensor:
        return (1 - smoothing) * loss(preferred, other) + smoothing * loss(other, preferred)

    return expected


def squared_norm_penalty(squared: Float[Tensor, " pair"], *, rho: float) -> Float[Tensor, " pair"]:
    """Return ``rho squared``, what the authors' released WDPO adds to the loss of every pair.

    ``squared`` is the squared norm of the gradient of a pair's loss by its input embeddings.
    """
    return rho * squared


def root_mean_square_penalty(
    squared: Float[Tensor, " pair"], weights: Float[Tensor, " pair"], *, rho: float
) -> Float[Tensor, " pair"]:
    """Return ``rho (squared + mean) / (2 sqrt(mean))`` with ``mean`` a constant: their mean is ``rho sqrt(mean)``.

    So are its gradients: the tangent of the root at ``mean`` splits WDPO's penalty ``rho sqrt(E[squared])`` (Xu et al.
    2025, arXiv 2502.01930, Algorithm 1) into one number a pair. ``mean`` is over ``weights``, of shape ``[pair]``.
    """
    mean = ((weights * squared).sum() / weights.sum()).detach().clamp(min=SMALLEST_MEAN_SQUARE)
    return rho * (squared + mean) / (2 * mean.sqrt())


WeightFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Mutual information of (preferred, other), in units of its spread -> their weights omega, each ``[pair]``."""
ScaleFunction = Callable[[Tensor, Tensor], Tensor]
"""Weights omega of (preferred, other) -> the factor s that both are multiplied by, ``[pair]``."""


def logistic_weights(
    preferred: Float[Tensor, " pair"], other: Float[Tensor, " pair"]
) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
    """Return ``2 sigmoid(other - preferred)`` and its complement to 2: less weight for what is understood better.

    A reconstruction: the weight function of B-DPO (Zhao et al. 2026, arXiv 2603.22829) is in no source.
    """
    return 2 * torch.sigmoid(other - preferred), 2 * torch.sigmoid(preferred - other)


def norm_scale(preferred: Float[Tensor, " pair"], other: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
    """Return ``sqrt(2 / (preferred^2 + other^2))``: the two coefficients keep the Euclidean norm that DPO gives them.

    A reconstruction of what keeps the gradient's size; with ``logistic_weights`` it lies in [0.71, 1].
    """
    return torch.sqrt(2 / (preferred**2 + other**2))


def no_scale(preferred: Float[Tensor, " pair"], other: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:  # noqa: ARG001
    """Return 1 for every pair."""
    return torch.ones_like(preferred)


def two_sided(
    preferred: Float[Tensor, " pair"],
    other: Float[Tensor, " pair"],
    coefficients: tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]],
) -> Float[Tensor, " pair"]:
    """Return ``-log sigmoid(coefficient_w preferred - coefficient_l other)``: DPO with a coefficient a side.

    B-DPO (Zhao et al. 2026) with ``s beta omega`` as coefficients. Unequal ones see the log-ratios themselves, not
    their difference alone: a constant added to both changes the loss.
    """
    return -functional.logsigmoid(coefficients[0] * preferred - coefficients[1] * other)


SCALES = {"norm": norm_scale, "none": no_scale}
