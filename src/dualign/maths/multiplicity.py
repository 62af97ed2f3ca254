"""Which of several hypotheses may be rejected together, at a family-wise error rate of ``delta``."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

BoolArray = NDArray[np.bool_]


def bonferroni(p_values: ArrayLike, *, delta: float) -> BoolArray:
    """Return where ``p <= delta / I`` of I p-values."""
    p = np.asarray(p_values, dtype=np.float64)
    return np.asarray(p <= delta / max(p.size, 1))


def holm(p_values: ArrayLike, *, delta: float) -> BoolArray:
    """Return the rejections of the step-down procedure of Holm (1979): never fewer than Bonferroni's."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    passed = np.logical_and.accumulate(p[order] <= delta / np.arange(p.size, 0, -1))
    rejected = np.zeros(p.size, dtype=bool)
    rejected[order] = passed
    return rejected


def fixed_sequence(p_values: ArrayLike, *, delta: float) -> BoolArray:
    """Return the leading run of ``p <= delta``: each at full ``delta``, in an order that was fixed beforehand."""
    p = np.asarray(p_values, dtype=np.float64)
    return np.asarray(np.logical_and.accumulate(p <= delta))


MULTIPLICITY: dict[str, Callable[..., BoolArray]] = {
    "bonferroni": bonferroni,
    "holm": holm,
    "fixed-sequence": fixed_sequence,
}
