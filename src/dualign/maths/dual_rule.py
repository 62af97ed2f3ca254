"""What a dual rule is: a pure ``update(observation, state) -> state``, and how its history is read.

Every rule asks for the multipliers 0 first (a limit that holds there costs nothing), then for its start. All rules
solve ``violation(multipliers) <= 0``, where violation is non-increasing in each multiplier.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dualign.maths.exact import FloatArray

Status = Literal["running", "slack", "converged", "infeasible", "budget"]


@dataclass(frozen=True, slots=True)
class Observation:
    """What one policy showed."""

    multipliers: FloatArray
    """Shape ``[constraint]``: the multipliers that the policy was fitted for."""
    violation: FloatArray
    """Shape ``[constraint]``: cost - limit (+ margin); positive is broken."""
    error: FloatArray
    """Shape ``[constraint]``: standard error of the violation; all zeros mean that it is exact."""
    slope: FloatArray | None = None
    """Shape ``[constraint, constraint]``: d violation_i / d multiplier_j, of a Gibbs policy -E Cov(c_i, c_j) / beta."""


@dataclass(frozen=True, slots=True)
class DualState:
    """Where a dual rule stands."""

    multipliers: FloatArray
    """Shape ``[constraint]``: to be evaluated next while ``running``; the rule's answer afterwards."""
    start: FloatArray
    """Shape ``[constraint]``: evaluated after 0."""
    status: Status = "running"
    history: tuple[Observation, ...] = ()
    """Every observation, in the order of arrival."""

    @property
    def round(self) -> int:
        """Return the number of policies observed, the one at 0 included."""
        return len(self.history)


@dataclass(frozen=True, slots=True)
class DualRule:
    """A way to choose multipliers; both functions are pure."""

    name: str
    init: Callable[[FloatArray], DualState]
    """``start`` of shape ``[constraint]`` -> the state that asks for 0."""
    update: Callable[[Observation, DualState], DualState]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """When a rule stops, in the units of the observations (normalised scores: cost SD = reward SD = 1)."""

    violation_tolerance: float = 1e-3
    """Largest |violation| that counts as zero. Larger stops sooner, further from the limit."""
    multiplier_tolerance: float = 0.01
    """Largest absolute error of a multiplier in exact observations."""
    relative_tolerance: float = 0.01
    """Or this share of the multiplier, whichever is larger."""
    z: float = 1.0
    """A noisy violation within ``z`` standard errors of zero counts as zero."""
    z_feasible: float = 1.645
    """Standard errors below zero at which a limit counts as met."""
    largest: float = 1e4
    """Largest multiplier tried; a limit still broken there is infeasible."""
    budget: int = 40
    """Largest number of policies; every one is a training run."""


def initial(start: FloatArray) -> DualState:
    """Return the state that asks for 0, then ``start``.

    Raises:
        ValueError: a start that is not a vector of finite, non-negative numbers.
    """
    start = np.asarray(start, dtype=np.float64)
    if start.ndim != 1 or not np.all(np.isfinite(start)) or np.any(start < 0):
        raise ValueError(f"start must be a vector of finite, non-negative multipliers, got {start}")
    return DualState(multipliers=np.zeros_like(start), start=start)


def is_exact(history: Sequence[Observation]) -> bool:
    """Return whether no observation has an error."""
    return not any(np.any(observation.error > 0) for observation in history)


def feasible(observation: Observation, stopping: Stopping) -> bool:
    """Return whether all limits hold by ``z_feasible`` standard errors (exact: up to the tolerance, except at 0)."""
    exact = not np.any(observation.error > 0) and np.any(observation.multipliers > 0)
    slack = stopping.violation_tolerance if exact else 0.0
    return bool(np.all(observation.violation + stopping.z_feasible * observation.error <= slack))


def select(history: Sequence[Observation], stopping: Stopping) -> tuple[int, bool]:
    """Return the index of the smallest multipliers whose limits hold with their errors, and True.

    Where none holds: the index with the smallest worst violation, and False ("not established").
    """
    established = [k for k, observation in enumerate(history) if feasible(observation, stopping)]
    if established:
        return min(established, key=lambda k: float(history[k].multipliers.sum())), True
    return min(range(len(history)), key=lambda k: float(history[k].violation.max())), False


def resolve(state: DualState, status: Status, answer: FloatArray) -> DualState:
    """Return ``state`` ended with ``status`` and ``answer``."""
    return replace(state, status=status, multipliers=answer)


def first_steps(observation: Observation, state: DualState, stopping: Stopping) -> tuple[DualState, bool]:
    """Return the state with ``observation`` stored, and whether the two opening moves have settled the next one.

    The opening: 0 ends as ``slack`` where every limit holds there, else ``start`` is asked for.

    Raises:
        ValueError: the observation is of another length than the start, or not finite.
    """
    if observation.violation.shape != state.start.shape or observation.multipliers.shape != state.start.shape:
        raise ValueError(f"an observation must have {len(state.start)} constraints, got {observation}")
    if not np.all(np.isfinite(observation.violation)) or not np.all(np.isfinite(observation.error)):
        raise ValueError(f"an observation must be finite, got {observation}")
    state = replace(state, history=(*state.history, observation))
    if state.round > 1:
        return state, False
    if feasible(observation, stopping):
        return resolve(state, "slack", observation.multipliers), True
    if stopping.budget <= 1:
        return resolve(state, "budget", observation.multipliers), True
    following = state.start if np.any(state.start > 0) else np.ones_like(state.start)
    return replace(state, multipliers=following), True
