"""The dual step: what a rule sees, how its history is read, when it stops, and the rules that follow the violation.

A rule is a pure ``update(observation, state) -> state``. Every rule of ``dual_rules.DUAL_RULES`` asks for the
multipliers 0 first (a limit that holds there costs nothing), then for its start. All solve
``violation(multipliers) <= 0``, where violation is non-increasing in each multiplier.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

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

    def noise(self, observation: Observation) -> FloatArray:
        """Return shape ``[constraint]``: the largest |violation| that counts as zero in an observation."""
        return np.maximum(self.violation_tolerance, self.z * observation.error)

    def allowed(self, multipliers: ArrayLike) -> FloatArray:
        """Return the error that multipliers may have, of their shape."""
        return np.maximum(self.multiplier_tolerance, self.relative_tolerance * np.asarray(multipliers))


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


def out_of_budget(state: DualState, stopping: Stopping) -> DualState:
    """Return ``state`` ended with the best of the multipliers that were observed."""
    index, _ = select(state.history, stopping)
    return resolve(state, "budget", state.history[index].multipliers)


def residual(violation: FloatArray, held_up: NDArray[np.bool_]) -> FloatArray:
    """Return what the optimality conditions leave: |violation| where a multiplier is held up, else what is broken."""
    return np.where(held_up, np.abs(violation), np.maximum(violation, 0))


def ascent(observation: Observation, *, step: float, largest: float) -> FloatArray:
    """Return ``multipliers + step violation``, the projected subgradient step of the dual, within 0 and ``largest``."""
    return np.clip(observation.multipliers + step * observation.violation, 0.0, largest)


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


def gradient(*, step: float, stopping: Stopping = Stopping()) -> DualRule:  # noqa: B008 (frozen)
    """Return the rule ``multipliers <- max(0, multipliers + step * violation)``, dual descent as in C-DPO.

    With ``step <= 1 / L``, ``L = max_x sum_i range_x(c_i)^2 / (4 beta)``, the dual value never rises. It stops where no
    limit is broken and no multiplier is held up against a limit that is slack, by the tolerance or ``z`` errors, and
    where in exact observations the multipliers have settled too.

    Source: Liu, Sun & Zheng 2024 (C-DPO) for direction and loop; the projection and the stop are reconstructions.

    Raises:
        ValueError: a step that is not positive.
    """
    if not step > 0:
        raise ValueError(f"step must be positive, got {step}")

    def update(observation: Observation, state: DualState) -> DualState:
        state, settled = first_steps(observation, state, stopping)
        if settled:
            return state
        here, noise = observation.multipliers, stopping.noise(observation)
        if np.all(residual(observation.violation, here > 0) <= noise) and _settled(state, step, stopping):
            return resolve(state, "converged", here)
        if np.any((here >= stopping.largest) & (observation.violation > noise)):
            return resolve(state, "infeasible", here)
        if state.round >= stopping.budget:
            return out_of_budget(state, stopping)
        return replace(state, multipliers=ascent(observation, step=step, largest=stopping.largest))

    return DualRule("gradient", initial, update)


def subgradient(*, step: float, stopping: Stopping) -> DualRule:
    """Return the same step as ``gradient``, begun at the start and not at 0: what a one-shot dual is corrected by.

    It stops where no limit is broken and no multiplier is held up against a limit that is slack, by the tolerance or
    ``z`` errors, or where the budget is spent. Source: Zhang et al. 2025 (CAID, arXiv 2505.19387); the stop is a
    reconstruction.

    Raises:
        ValueError: a step that is not positive.
    """
    if not step > 0:
        raise ValueError(f"step must be positive, got {step}")

    def update(observation: Observation, state: DualState) -> DualState:
        state = replace(state, history=(*state.history, observation))
        here = observation.multipliers
        if np.all(residual(observation.violation, here > 0) <= stopping.noise(observation)):
            return resolve(state, "converged" if np.any(here > 0) else "slack", here)
        if state.round >= stopping.budget:
            return out_of_budget(state, stopping)
        return replace(state, multipliers=ascent(observation, step=step, largest=stopping.largest))

    return DualRule("subgradient", lambda start: DualState(start, start), update)


def _settled(state: DualState, step: float, stopping: Stopping) -> bool:
    """Return whether the predicted distance to the root is within tolerance (a geometric series)."""
    if not is_exact(state.history):
        return True
    here, before = state.history[-1].multipliers, state.history[-2].multipliers
    following = ascent(state.history[-1], step=step, largest=np.inf)
    last, ahead = np.abs(here - before).max(), np.abs(following - here).max()
    remaining = ahead / (1 - ahead / last) if ahead < last else (0.0 if ahead == 0 else np.inf)
    return bool(remaining <= stopping.allowed(here.max(initial=0)) / 2)


def fixed(multipliers: FloatArray) -> DualRule:
    """Return the rule that evaluates ``multipliers`` once and keeps them, whatever the violation."""
    chosen = np.asarray(multipliers, dtype=np.float64)

    def init(start: FloatArray) -> DualState:
        if np.shape(start) != chosen.shape:
            raise ValueError(f"fixed multipliers are {chosen.size}, constraints are {np.size(start)}")
        return replace(initial(chosen), multipliers=chosen)

    def update(observation: Observation, state: DualState) -> DualState:
        return replace(state, status="converged", history=(*state.history, observation))

    return DualRule("fixed", init, update)


def margin(spread: float, *, n_tune: int, n_calibration: int, delta: float, width_ratio: float = 1.0) -> float:
    """Return how far below the limit the dual must aim so that the certificate passes 9 times out of 10.

    ``(z_{1-delta} s / sqrt(n_calibration) + z_.90 s sqrt(1 / n_calibration + 1 / n_tune)) * width_ratio``, in the units
    of ``spread`` = s, the SD of the prompts' mean costs; ``width_ratio`` is the certificate's width over that of a t
    bound. A loop that aims at the limit itself breaks it half of the time. A reconstruction.

    Raises:
        ValueError: no prompts, or a ``delta`` outside (0, 1).
    """
    if n_tune < 1 or n_calibration < 1:
        raise ValueError(f"a margin needs prompts, got {n_tune} to tune and {n_calibration} to calibrate")
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie between 0 and 1, got {delta}")
    from scipy.special import ndtri

    bound = float(ndtri(1 - delta)) * spread / np.sqrt(n_calibration)
    luck = float(ndtri(0.90)) * spread * np.sqrt(1 / n_calibration + 1 / n_tune)
    return float((bound + luck) * width_ratio)
