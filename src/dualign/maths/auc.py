"""How well a score tells two classes apart: the area under the ROC curve, with an interval clustered by group."""

import math

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


def clustered_auc(
    score: FloatArray, label: BoolArray, group: IntArray, confidence: float
) -> tuple[float, float, float]:
    """Return (AUC, lower, upper): P(a positive scores above a negative), ties counting one half.

    The variance is Obuchowski's (1997, Biometrics 53, eq. 3-6), which is DeLong's when every group is one row;
    the interval is made on the logit scale. At an AUC of 0 or 1 that variance is 0: the bound is then the exact
    binomial one for the smaller number of groups with a row of a class (a reconstruction, on the wide side).
    """
    from scipy.special import ndtri

    positive, negative = _placements(score, label)
    area = float(positive.mean())
    groups = int(group.max()) + 1
    by_positive = np.bincount(group[label], weights=positive - area, minlength=groups)
    by_negative = np.bincount(group[~label], weights=negative - area, minlength=groups)
    with_positive = len(np.unique(group[label]))
    with_negative = len(np.unique(group[~label]))
    fewest = min(with_positive, with_negative)
    tail = (1 - confidence) / 2
    if area in (0.0, 1.0) or fewest < 2:
        exact = tail ** (1 / fewest)
        return (area, exact, 1.0) if area > 0.5 else (area, 0.0, 1 - exact)
    share_positive, share_negative = by_positive / len(positive), by_negative / len(negative)
    variance = (
        _spread(share_positive, share_positive, with_positive)
        + _spread(share_negative, share_negative, with_negative)
        + 2 * _spread(share_positive, share_negative, groups)
    )
    half = float(ndtri((1 + confidence) / 2)) * math.sqrt(max(variance, 0.0)) / (area * (1 - area))
    centre = math.log(area / (1 - area))
    return area, _logistic(centre - half), _logistic(centre + half)


def _spread(first: FloatArray, second: FloatArray, groups: int) -> float:
    return groups / (groups - 1) * float(first @ second)


def _placements(score: FloatArray, label: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Return, for each positive, the share of negatives below it; for each negative, of positives above it."""
    positive, negative = score[label], score[~label]
    below = _share_below(positive, np.sort(negative))
    above = 1 - _share_below(negative, np.sort(positive))
    return below, above


def _share_below(values: FloatArray, ordered: FloatArray) -> FloatArray:
    left, right = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return np.asarray((left + right) / (2 * len(ordered)), dtype=np.float64)


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))
