"""A mean of human labels, sharpened by a judge who saw every answer; the prompt is the unit."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dualign.maths.clustering import prompt_means

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PoweredMean:
    """A mean over prompts, with a two-sided t interval."""

    estimate: float
    low: float
    high: float
    error: float
    """Standard error; infinite with too few labelled prompts."""
    weight: float
    """How much the judge counts: 0 is the mean of the labels alone."""
    labelled: int
    """Prompts with a human label."""
    unlabelled: int
    """Prompts that only the judge saw."""


def prediction_powered_mean(
    label: ArrayLike,
    judge: ArrayLike,
    prompt_index: ArrayLike,
    *,
    weight: float | None = None,
    confidence: float = 0.95,
) -> PoweredMean:
    """Return ``mean(y) + w (mean of judge, unlabelled - mean of judge, labelled)`` (Angelopoulos, Duchi, Zrnic 2023).

    The prompt is the unit: its labels, and the judge's scores of the same answers, are averaged first. Answers without
    a label count only where their whole prompt has none, so that both sets are independent. Which prompts are labelled
    must not depend on the answers. Any weight leaves the estimate without bias, and a weight may be negative or above
    1, so the judge's unit and even its sign do not matter. The default is the weight of least estimated variance
    (their power tuning, section 6), ``Cov(y, f) / (Var(f | labelled) + n/N Var(f | unlabelled))``; it costs one degree
    of freedom, as a fitted slope does.

    Args:
        label: Shape ``[response]``, NaN where nobody said.
        judge: Shape ``[response]``, every one.
        prompt_index: Shape ``[response]``.
        weight: Fixed beforehand; none: the best, estimated from the same data.
        confidence: Of the interval.
    """
    y, f, index = np.asarray(label, dtype=np.float64), np.asarray(judge, dtype=np.float64), np.asarray(prompt_index)
    said = ~np.isnan(y)
    apart = ~np.isin(index, index[said])
    labels, seen, others = (prompt_means(v[k], index[k]) for v, k in ((y, said), (f, said), (f, apart)))
    if not labels.size:
        return PoweredMean(math.nan, -math.inf, math.inf, math.inf, 0.0, 0, others.size)
    chosen = _best_weight(labels, seen, others) if weight is None else weight if others.size else 0.0
    fitted = 0 if weight is not None or chosen == 0 else 1
    rectified = labels - chosen * seen
    estimate = float(rectified.mean()) + (chosen * float(others.mean()) if chosen else 0.0)
    freedom = labels.size - 1 - fitted
    variance = _variance(rectified, freedom) / labels.size
    if chosen:
        variance += chosen**2 * _variance(others, others.size - 1) / others.size
    return _with_interval(estimate, math.sqrt(variance), freedom, confidence, chosen, labels.size, others.size)


def _with_interval(
    estimate: float, error: float, freedom: int, confidence: float, weight: float, labelled: int, unlabelled: int
) -> PoweredMean:
    from scipy.special import stdtrit

    half = float(stdtrit(freedom, (1 + confidence) / 2)) * error if math.isfinite(error) else math.inf
    return PoweredMean(estimate, estimate - half, estimate + half, error, weight, labelled, unlabelled)


def _best_weight(labels: FloatArray, seen: FloatArray, others: FloatArray) -> float:
    """Return the weight of least estimated variance; 0 where there is too little to fit one."""
    if labels.size < 3 or others.size < 2:
        return 0.0
    spread = float(seen.var(ddof=1)) + labels.size / others.size * float(others.var(ddof=1))
    return float(np.cov(labels, seen)[0, 1]) / spread if spread > 0 else 0.0


def _variance(values: FloatArray, freedom: int) -> float:
    """Return the sum of squares about the mean, over ``freedom``; infinite without any."""
    return float(((values - values.mean()) ** 2).sum()) / freedom if freedom > 0 else math.inf
