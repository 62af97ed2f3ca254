"""How good a binary classifier is: accuracy and AUC, with intervals that respect groups of related rows."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualign.records import FloatArray

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures on rows that the classifier was not trained on; intervals cover rows, not training choices."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    auc: float
    auc_low: float
    auc_high: float
    recall: float
    """Share of the positives that are recognised (probability above 1/2)."""
    false_alarms: float
    """Share of the negatives taken for positives."""
    rows: int
    positives: int
    groups: int
    """Rows of one group (answers to one prompt) are always together, in training and in the intervals."""
    folds: int
    confidence: float = 0.95

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        return asdict(self)


def quality(
    probability: FloatArray, label: BoolArray, group: Sequence[str], *, folds: int = 1, confidence: float = 0.95
) -> Quality:
    """Return the figures of ``probability`` (shape ``[row]``) against ``label``, threshold 1/2.

    The interval of the accuracy is Wilson's with one trial a group: right when the rows of a group stand
    and fall together, too wide otherwise. That of the AUC is Obuchowski's (1997) for clustered data.

    Raises:
        ValueError: one of the classes has no rows.
    """
    label = np.asarray(label)
    if label.dtype != np.bool_:
        raise ValueError(f"labels have dtype {label.dtype}; booleans are needed")
    if label.all() or not label.any():
        raise ValueError("quality needs rows of both classes")
    codes = np.unique(np.asarray(group), return_inverse=True)[1].astype(np.int64)
    groups = int(codes.max()) + 1
    hit = (probability > 0.5) == label
    accuracy = float(hit.mean())
    accuracy_low, accuracy_high = wilson(accuracy, groups, confidence)
    area, auc_low, auc_high = clustered_auc(probability, label, codes, confidence)
    return Quality(
        accuracy=accuracy,
        accuracy_low=accuracy_low,
        accuracy_high=accuracy_high,
        auc=area,
        auc_low=auc_low,
        auc_high=auc_high,
        recall=float(hit[label].mean()),
        false_alarms=float(1 - hit[~label].mean()),
        rows=len(label),
        positives=int(label.sum()),
        groups=groups,
        folds=folds,
        confidence=confidence,
    )


def wilson(share: float, trials: int, confidence: float) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of a share seen in ``trials`` trials."""
    z = _quantile(confidence)
    centre = share + z**2 / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def clustered_auc(
    score: FloatArray, label: BoolArray, group: IntArray, confidence: float
) -> tuple[float, float, float]:
    """Return (AUC, lower, upper): P(a positive scores above a negative), ties counting one half.

    The variance is Obuchowski's (1997, Biometrics 53, eq. 3-6), which is DeLong's when every group is one row;
    the interval is made on the logit scale. At an AUC of 0 or 1 that variance is 0: the bound is then the exact
    binomial one for the smaller number of groups with a row of a class (a reconstruction, on the wide side).
    """
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
    half = _quantile(confidence) * math.sqrt(max(variance, 0.0)) / (area * (1 - area))
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


def _quantile(confidence: float) -> float:
    from scipy.special import ndtri

    return float(ndtri((1 + confidence) / 2))


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))
