"""Averages, errors and comparisons when the responses of one prompt belong together.

The unit of independence is the prompt: its responses are averaged before anything is counted.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dualign.maths.exact import FloatArray


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The mean of ``a - b`` over prompts, with a two-sided t interval clustered by prompt."""

    estimate: float
    error: float
    """Standard error; infinite below two prompts."""
    low: float
    high: float
    n_prompts: int


def prompt_means(values: ArrayLike, prompt_index: ArrayLike) -> FloatArray:
    """Return shape ``[prompt]`` means of ``values[response]``, in the order of the sorted prompt numbers.

    The sums are taken in sorted order, so the order of the rows changes no bit of the result.
    """
    data = np.asarray(values, dtype=np.float64)
    index = np.asarray(prompt_index)
    if data.shape != index.shape:
        raise ValueError(f"one prompt number a value is needed; given {index.shape} for {data.shape}")
    order = np.lexsort((data, index))
    _, place, counts = np.unique(index[order], return_inverse=True, return_counts=True)
    return np.asarray(np.bincount(place, weights=data[order], minlength=counts.size) / counts)


def rows_of_prompts(prompt_index: ArrayLike) -> list[NDArray[np.int64]]:
    """Return the rows of each prompt, in the order of the sorted prompt numbers."""
    index = np.asarray(prompt_index)
    order = np.argsort(index, kind="stable").astype(np.int64)
    return np.split(order, np.flatnonzero(np.diff(index[order])) + 1)


def standard_error(means: ArrayLike) -> float:
    """Return ``s / sqrt(n)`` of one value a prompt; infinite below two prompts."""
    data = np.asarray(means, dtype=np.float64)
    return float(data.std(ddof=1) / math.sqrt(data.size)) if data.size > 1 else math.inf


def half_width(error: float, freedom: int, confidence: float) -> float:
    """Return how far a two-sided t interval reaches from its estimate; infinite with an infinite error."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2)) * error if math.isfinite(error) else math.inf


def intraclass_correlation(values: ArrayLike, prompt_index: ArrayLike) -> float:
    """Return the share of variance that lies between prompts: the one-way ANOVA estimate, cut to [0, 1].

    With prompts of unequal size the mean size is ``(N - sum k^2 / N) / (J - 1)`` (Donner 1986). NaN where it cannot
    be told: fewer than two prompts, one response a prompt, or no variance at all.
    """
    data = np.asarray(values, dtype=np.float64)
    _, place, counts = np.unique(np.asarray(prompt_index), return_inverse=True, return_counts=True)
    prompts, total = counts.size, data.size
    if prompts < 2 or total == prompts:
        return math.nan
    means = np.bincount(place, weights=data) / counts
    between = float((counts * (means - data.mean()) ** 2).sum() / (prompts - 1))
    within = float(((data - means[place]) ** 2).sum() / (total - prompts))
    size = (total - float((counts.astype(float) ** 2).sum()) / total) / (prompts - 1)
    denominator = between + (size - 1) * within
    return min(1.0, max(0.0, (between - within) / denominator)) if denominator > 0 else math.nan


def paired_difference(a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95) -> PairedDifference:
    """Return the mean of ``a - b`` with its interval; row j of both belongs to prompt j.

    Shapes ``[prompt]`` or ``[prompt, response]``; responses are averaged first, and their numbers may differ.
    Below two prompts the interval is the whole line.
    """
    first, second = _by_prompt(a), _by_prompt(b)
    if first.shape != second.shape:
        raise ValueError(f"pairs need the same prompts; given {first.size} and {second.size}")
    difference = first - second
    n = difference.size
    if n < 2:
        return PairedDifference(float(difference.mean()) if n else math.nan, math.inf, -math.inf, math.inf, n)
    estimate, error = float(difference.mean()), standard_error(difference)
    half = half_width(error, n - 1, confidence)
    return PairedDifference(estimate, error, estimate - half, estimate + half, n)


def _by_prompt(values: ArrayLike) -> FloatArray:
    data = np.asarray(values, dtype=np.float64)
    return data if data.ndim == 1 else data.mean(axis=1)


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
    error = math.sqrt(variance)
    half = half_width(error, freedom, confidence)
    return PoweredMean(estimate, estimate - half, estimate + half, error, chosen, labels.size, others.size)


def _best_weight(labels: FloatArray, seen: FloatArray, others: FloatArray) -> float:
    """Return the weight of least estimated variance; 0 where there is too little to fit one."""
    if labels.size < 3 or others.size < 2:
        return 0.0
    spread = float(seen.var(ddof=1)) + labels.size / others.size * float(others.var(ddof=1))
    return float(np.cov(labels, seen)[0, 1]) / spread if spread > 0 else 0.0


def _variance(values: FloatArray, freedom: int) -> float:
    """Return the sum of squares about the mean, over ``freedom``; infinite without any."""
    return float(((values - values.mean()) ** 2).sum()) / freedom if freedom > 0 else math.inf
