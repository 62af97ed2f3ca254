"""What of a cost is bounded: its mean, its rate, its tail, or its difference from the reference.

Each is a transform of the costs of single responses whose *mean* is the bounded quantity, together with what
the transform does to the cap; so one bound on means serves all. A slice is no transform: its population is
the prompts of the slice (``slice_mask``).
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


class Functional(Protocol):
    """A transform of costs; ``spec`` is the text that ``parse`` turns back into it, and part of every claim."""

    @property
    def spec(self) -> str:
        """Return the text form, with everything that was fitted."""

    def fit(self, costs: ArrayLike) -> "Functional":
        """Return the functional with what it needs from the tune costs; frozen before calibration."""

    def transform(self, costs: ArrayLike, reference: ArrayLike | None = None) -> FloatArray:
        """Return transformed costs, same shape; ``reference`` is each prompt's mean cost under the reference."""

    def transform_cap(self, cap: float | None) -> float | None:
        """Return the cap of the transformed costs; none where it stays unknown."""


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean cost."""

    spec: str = "mean"

    def fit(self, costs: ArrayLike) -> "Mean":  # noqa: ARG002
        """Return itself: nothing is fitted."""
        return self

    def transform(self, costs: ArrayLike, reference: ArrayLike | None = None) -> FloatArray:  # noqa: ARG002
        """Return the costs."""
        return np.asarray(costs, dtype=np.float64)

    def transform_cap(self, cap: float | None) -> float | None:
        """Return the cap."""
        return cap


@dataclass(frozen=True, slots=True)
class Rate:
    """The share of responses whose cost is above ``threshold``, 0 unless another is given (``rate:0.5``)."""

    threshold: float = 0.0

    @property
    def spec(self) -> str:
        """Return ``rate`` or ``rate:THRESHOLD``."""
        return "rate" if self.threshold == 0 else f"rate:{self.threshold!r}"

    def fit(self, costs: ArrayLike) -> "Rate":  # noqa: ARG002
        """Return itself: nothing is fitted."""
        return self

    def transform(self, costs: ArrayLike, reference: ArrayLike | None = None) -> FloatArray:  # noqa: ARG002
        """Return 1 where the cost is above the threshold, else 0."""
        return (np.asarray(costs, dtype=np.float64) > self.threshold).astype(np.float64)

    def transform_cap(self, cap: float | None) -> float | None:  # noqa: ARG002
        """Return 1: an indicator needs no cap of its own."""
        return 1.0


@dataclass(frozen=True, slots=True)
class ConditionalValueAtRisk:
    """The mean of the worst ``1 - alpha`` of the costs, through a fixed threshold (Rockafellar and Uryasev 2000).

    For every threshold t, ``t + E[max(c - t, 0)] / (1 - alpha)`` is at least the CVaR, with equality at t = VaR:
    a threshold from other data costs tightness, never validity.
    """

    alpha: float
    threshold: float | None = None
    """VaR of the tune costs; none until ``fit``."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"cvar: the level must lie strictly between 0 and 1; given {self.alpha!r}")

    @property
    def spec(self) -> str:
        """Return ``cvar:ALPHA`` or, once fitted, ``cvar:ALPHA:THRESHOLD``."""
        return f"cvar:{self.alpha!r}" + ("" if self.threshold is None else f":{self.threshold!r}")

    def fit(self, costs: ArrayLike) -> "ConditionalValueAtRisk":
        """Return the functional with the threshold at the ``alpha`` quantile of ``costs`` (one of the values)."""
        data = np.asarray(costs, dtype=np.float64).ravel()
        return replace(self, threshold=float(np.quantile(data, self.alpha, method="inverted_cdf")))

    def transform(self, costs: ArrayLike, reference: ArrayLike | None = None) -> FloatArray:  # noqa: ARG002
        """Return ``t + max(c - t, 0) / (1 - alpha)``."""
        threshold = self._fitted()
        excess = np.maximum(np.asarray(costs, dtype=np.float64) - threshold, 0.0)
        return np.asarray(threshold + excess / (1 - self.alpha))

    def transform_cap(self, cap: float | None) -> float | None:
        """Return ``t + max(cap - t, 0) / (1 - alpha)``."""
        threshold = self._fitted()
        return None if cap is None else threshold + max(cap - threshold, 0.0) / (1 - self.alpha)

    def _fitted(self) -> float:
        if self.threshold is None:
            raise ValueError(f"{self.spec}: the threshold is not fitted; call fit(tune costs) first")
        return self.threshold


@dataclass(frozen=True, slots=True)
class Relative:
    """The mean difference from the reference, prompt by prompt; limit and cap are those of differences."""

    spec: str = "relative"

    def fit(self, costs: ArrayLike) -> "Relative":  # noqa: ARG002
        """Return itself: nothing is fitted."""
        return self

    def transform(self, costs: ArrayLike, reference: ArrayLike | None = None) -> FloatArray:
        """Return costs minus the reference's mean cost on the same prompt."""
        if reference is None:
            raise ValueError("relative: the reference's costs on the same prompts are needed")
        return np.asarray(costs, dtype=np.float64) - np.asarray(reference, dtype=np.float64)

    def transform_cap(self, cap: float | None) -> float | None:
        """Return the cap, which is one for differences."""
        return cap


def _plain(make: Callable[[], Functional]) -> Callable[[Sequence[str]], Functional]:
    def build(arguments: Sequence[str]) -> Functional:
        if arguments:
            raise ValueError(f"functional {make().spec!r} takes no argument; given {':'.join(arguments)!r}")
        return make()

    return build


def _numbers(arguments: Sequence[str]) -> list[float]:
    """Return the arguments as finite numbers; empty where one is none."""
    try:
        numbers = [float(argument) for argument in arguments]
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def _rate(arguments: Sequence[str]) -> Functional:
    numbers = _numbers(arguments)
    if len(numbers) != len(arguments) or len(numbers) > 1:
        raise ValueError(f"rate: expected rate or rate:THRESHOLD, as rate:0.5; given 'rate:{':'.join(arguments)}'")
    return Rate(*numbers)


def _cvar(arguments: Sequence[str]) -> Functional:
    numbers = _numbers(arguments)
    if len(numbers) not in (1, 2):
        raise ValueError(f"cvar: expected cvar:ALPHA, for example cvar:0.9; given 'cvar:{':'.join(arguments)}'")
    return ConditionalValueAtRisk(*numbers)


FUNCTIONALS: dict[str, Callable[[Sequence[str]], Functional]] = {
    "mean": _plain(Mean),
    "rate": _rate,
    "cvar": _cvar,
    "relative": _plain(Relative),
}


def parse(text: str) -> Functional:
    """Return the functional of the name ``mean``, ``rate``, ``rate:0.5``, ``cvar:0.9``, ``cvar:0.9:T`` or ``relative``.

    Raises:
        ValueError: one line that names the nearest known functional.
    """
    name, *arguments = text.strip().split(":")
    if name not in FUNCTIONALS:
        near = difflib.get_close_matches(name, FUNCTIONALS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(FUNCTIONALS)}"
        raise ValueError(f"unknown functional {name!r}; {hint}")
    return FUNCTIONALS[name](arguments)


def slice_mask(columns: Sequence[Mapping[str, str]], where: Mapping[str, str]) -> NDArray[np.bool_]:
    """Return which prompts belong to the slice: every column of ``where`` has its value (no condition: all).

    Raises:
        ValueError: a column of ``where`` that no prompt has.
    """
    for name in where:
        if not any(name in row for row in columns):
            known = sorted({key for row in columns for key in row})
            raise ValueError(f"slice: no prompt has a column {name!r}; the columns are {known}")
    return np.array([all(row.get(name) == value for name, value in where.items()) for row in columns], dtype=bool)
