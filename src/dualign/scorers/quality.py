"""How good a binary classifier is: accuracy and AUC, with intervals that respect groups of related rows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualign.maths.auc import clustered_auc
from dualign.maths.calibration import wilson
from dualign.records import FloatArray

BoolArray = NDArray[np.bool_]


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
