"""A linear head on given features, by L-BFGS on the exact loss, its strength of decay by grouped cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from dualign.errors import NumericalError
from dualign.records import FloatArray
from dualign.scorers.fitting.objective import ScoreLoss

MAX_ITERATIONS = 2_000
TOLERANCE = 1e-7
"""Largest slope at which the minimiser stops by itself."""
ACCEPTED = 1e-4
"""Largest slope that is accepted; features have length 1, so that losses are then within about 1e-6 of the least."""


@dataclass(frozen=True, slots=True)
class PairFeatures:
    """Features of both answers of pairs; matrices are dense or sparse, ``[pair, feature]``."""

    higher: Any
    lower: Any
    higher_sign: FloatArray
    lower_sign: FloatArray

    def __getitem__(self, rows: Any) -> PairFeatures:
        return PairFeatures(self.higher[rows], self.lower[rows], self.higher_sign[rows], self.lower_sign[rows])

    def __len__(self) -> int:
        return len(self.higher_sign)


@dataclass(frozen=True, slots=True)
class LinearHead:
    """score = bias + weights . features."""

    weights: FloatArray
    bias: float

    def __call__(self, features: Any) -> FloatArray:
        """Return shape ``[answer]`` scores of ``[answer, feature]``."""
        return np.asarray(features @ self.weights, dtype=np.float64).ravel() + self.bias


def mean_loss(head: LinearHead, data: PairFeatures, loss: ScoreLoss) -> float:
    """Return the mean loss over the pairs, without the decay."""
    return _loss_and_slopes(head(data.higher), head(data.lower), data, loss)[0]


def fit_linear(data: PairFeatures, loss: ScoreLoss, *, decay: float) -> LinearHead:
    """Return the head that minimises ``mean loss + decay / 2 * |weights|^2``; the bias does not decay.

    Raises:
        NumericalError: the minimiser did not converge.
    """
    width = data.higher.shape[1]

    def objective(point: FloatArray) -> tuple[float, FloatArray]:
        head = LinearHead(point[:width], float(point[width]))
        value, by_higher, by_lower = _loss_and_slopes(head(data.higher), head(data.lower), data, loss)
        gradient = data.higher.T @ by_higher + data.lower.T @ by_lower + decay * head.weights
        return value + decay / 2 * float(head.weights @ head.weights), np.append(gradient, (by_higher + by_lower).sum())

    found = minimize(
        objective,
        np.zeros(width + 1),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MAX_ITERATIONS, "maxfun": 2 * MAX_ITERATIONS, "ftol": 1e-12, "gtol": TOLERANCE},
    )
    # The line search may give up within rounding of the minimum: the slope tells, not the message.
    if not np.abs(found.jac).max() <= ACCEPTED:
        raise NumericalError(f"linear head: no minimum found with decay {decay:g} ({found.message}); raise the decay")
    return LinearHead(found.x[:width], float(found.x[width]))


def choose_decay(
    data: PairFeatures, loss: ScoreLoss, groups: Sequence[str], *, grid: Sequence[float], folds: int, seed: int
) -> tuple[float, dict[float, float]]:
    """Return the decay with the least loss on prompts left out in turn (the largest of equals), and every loss.

    Args:
        data: pairs to train on.
        loss: what is minimised and compared.
        groups: prompt of each pair; its pairs are never on both sides.
        grid: decays to try.
        folds: number of parts.
        seed: of the parts.
    """
    names = np.unique(np.asarray(groups))
    part = np.random.default_rng(seed).permutation(len(names)) % folds
    fold = part[np.searchsorted(names, np.asarray(groups))]
    losses = {}
    for decay in grid:
        total = 0.0
        for number in range(folds):
            inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            total += mean_loss(fit_linear(data[inside], loss, decay=decay), data[outside], loss) * len(outside)
        losses[decay] = total / len(data)
    return min(sorted(losses, reverse=True), key=lambda decay: losses[decay]), losses


def _loss_and_slopes(
    higher: FloatArray, lower: FloatArray, data: PairFeatures, loss: ScoreLoss
) -> tuple[float, FloatArray, FloatArray]:
    """Return the mean loss and its derivatives by either side's scores, each ``[pair]``."""
    sides = [torch.from_numpy(scores).requires_grad_() for scores in (higher, lower)]
    marks = [torch.from_numpy(sign) for sign in (data.higher_sign, data.lower_sign)]
    value = loss(*sides, *marks).mean()
    slopes = torch.autograd.grad(value, sides)
    return float(value.detach()), slopes[0].numpy(), slopes[1].numpy()
