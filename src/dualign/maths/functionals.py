"""What of a cost is bounded: its mean, its rate, its tail, or its difference from the reference.

Each is a transform of the costs of single responses whose *mean* is the bounded quantity, together with what
the transform does to the cap; so one bound on means serves all. A slice is no transform: its population is
the prompts of the slice.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from dualign.maths.exact import FloatArray


class Functional(Protocol):
    """A transform of costs; ``spec`` is the text that ``parse`` turns back into it, and part of every claim."""

    @property
    def spec(self) -> str:
        """Return the text form, with everything that was fitted."""

    def fit(self, costs: ArrayLike) -> "Functional":  # noqa: ARG002
        """Return the functional with what it needs from the tune costs, frozen before calibration (none: itself)."""
        return self

    def transform(self, costs: ArrayLike, reference: ArrayLike | None = None) -> FloatArray:
        """Return transformed costs, same shape; ``reference`` is each prompt's mean cost under the reference."""

    def transform_cap(self, cap: float | None) -> float | None:
        """Return the cap of the transformed costs, the same by default; none where it stays unknown."""
        return cap


@dataclass(frozen=True, slots=True)
class Mean(Functional):
    """The mean cost."""

    spec: str = "mean"

    def transform(self, costs: ArrayLike, reference: ArrayLike | None = None) -> FloatArray:  # noqa: ARG002
        """Return the costs."""
        return np.asarray(costs, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Rate(Functional):
    """The share of responses whose cost is above ``threshold``, 0 unless another is given (``rate:0.5``)."""

    threshold: float = 0.0

    @property
    def spec(self) -> str:
        """Return ``rate`` or ``rate:THRESHOLD``."""
        return "rate" if self.threshold == 0 else f"rate:{self.threshold!r}"

    def transform(self, costs: ArrayLike, reference: ArrayLike | None = None) -> FloatArray:  # noqa: ARG002
        """Return 1 where the cost is above the threshold, else 0."""
        return (np.asarray(costs, dtype=np.float64) > self.threshold).astype(np.float64)

    def transform_cap(self, cap: float | None) -> float | None:  # noqa: ARG002
        """Return 1: an indicator needs no cap of its own."""
        return 1.0


@dataclass(frozen=True, slots=True)
class ConditionalValueAtRisk(Functional):
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
class Relative(Functional):
    """The mean difference from the reference, prompt by prompt; limit and cap are those of differences."""

    spec: str = "relative"

    def transform(self, costs: ArrayLike, reference: ArrayLike | None = None) -> FloatArray:
        """Return costs minus the reference's mean cost on the same prompt."""
        if reference is None:
            raise ValueError("relative: the reference's costs on the same prompts are needed")
        return np.asarray(costs, dtype=np.float64) - np.asarray(reference, dtype=np.float64)


class _Form(NamedTuple):
    make: Callable[..., Functional]
    numbers: tuple[int, ...]
    """How many may follow the name."""
    expected: str


FUNCTIONALS: dict[str, _Form] = {
    "mean": _Form(Mean, (0,), "mean, which takes no argument"),
    "rate": _Form(Rate, (0, 1), "rate or rate:THRESHOLD, as rate:0.5"),
    "cvar": _Form(ConditionalValueAtRisk, (1, 2), "cvar:ALPHA, for example cvar:0.9"),
    "relative": _Form(Relative, (0,), "relative, which takes no argument"),
}


def parse(text: str) -> Functional:
    """Return the functional of the name ``mean``, ``rate``, ``rate:0.5``, ``cvar:0.9``, ``cvar:0.9:T`` or ``relative``.

    Raises:
        ValueError: one line that says what was expected.
    """
    name, *arguments = text.strip().split(":")
    if name not in FUNCTIONALS:
        raise ValueError(f"unknown functional {name!r}; known are {', '.join(FUNCTIONALS)}")
    form, numbers = FUNCTIONALS[name], _numbers(arguments)
    if len(numbers) != len(arguments) or len(numbers) not in form.numbers:
        raise ValueError(f"{name}: expected {form.expected}; given {text!r}")
    return form.make(*numbers)


def _numbers(arguments: Sequence[str]) -> list[float]:
    """Return the arguments as finite numbers; empty where one is none."""
    try:
        numbers = [float(argument) for argument in arguments]
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []
