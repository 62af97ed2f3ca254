"""The table of dual rules, and root finding for one constraint: each look at a violation is a training.

The violation never rises with the multiplier. Noisy observations follow a safeguarded secant through an isotonic fit
(a reconstruction: no source settles the details of stochastic root finding). Exact ones use every point there is: a
linear fractional through the three best points, whose saturating shape is that of an expected cost under exponential
tilting (Jarratt & Nudds 1965).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from dualign.maths.dual import (
    DualRule,
    DualState,
    Observation,
    Stopping,
    first_steps,
    fixed,
    gradient,
    initial,
    is_exact,
    out_of_budget,
    resolve,
    select,
)
from dualign.maths.exact import FloatArray
from dualign.maths.projected_newton import projected_newton

EDGE = 0.1
"""A noisy step stays this share of the bracket away from its ends."""

NEAREST = 1.25
"""A noisy step beyond the last multiplier is at least so many times that one."""

Proposal = Callable[[Sequence[Observation]], float]
"""Exact observations, sorted by multiplier -> the multiplier that should have no violation (may be NaN)."""


def isotonic(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the non-increasing sequence nearest to ``values`` in weighted squares (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        mean, total, size = float(value), float(weight), 1
        while blocks and blocks[-1][0] <= mean:
            previous, heavier, longer = blocks.pop()
            mean = (previous * heavier + mean * total) / (heavier + total)
            total, size = heavier + total, longer + size
        blocks.append((mean, total, size))
    return np.concatenate([np.full(size, mean) for mean, _, size in blocks])


def bracket(stopping: Stopping = Stopping()) -> DualRule:  # noqa: B008 (frozen)
    """Return the default rule for one constraint; it needs no slope and no step size."""
    return _one_constraint("bracket", _by_values, stopping)


def newton(stopping: Stopping = Stopping()) -> DualRule:  # noqa: B008 (frozen)
    """Return Newton's rule, ``multiplier - violation / slope``, kept inside the bracket; for Gibbs-type methods only.

    The slope is the observation's ``-E_x Cov(c, c) / beta``; a trained policy has another one, so noisy observations
    that leave the bracket are met by a secant.
    """
    return _one_constraint("newton", _by_slopes, stopping)


def _one_constraint(name: str, proposal: Proposal, stopping: Stopping) -> DualRule:
    def init(start: FloatArray) -> DualState:
        state = initial(start)
        if state.start.size != 1:
            raise ValueError(f"{name} takes one constraint, got {state.start.size}; use projected_newton")
        return state

    def update(observation: Observation, state: DualState) -> DualState:
        state, settled = first_steps(observation, state, stopping)
        if settled:
            return state
        if is_exact(state.history):
            return _exact_step(state, proposal, stopping)
        return _noisy_step(state, name, stopping)

    return DualRule(name, init, update)


# -- observations -------------------------------------------------------------------------------------------------


def _multiplier(observation: Observation) -> float:
    return float(observation.multipliers[0])


def _violation(observation: Observation) -> float:
    return float(observation.violation[0])


def _ends(points: Sequence[Observation]) -> tuple[Observation | None, Observation | None]:
    """Return the largest multiplier that breaks the limit and the smallest that keeps it."""
    broken = [point for point in points if _violation(point) > 0]
    kept = [point for point in points if _violation(point) <= 0]
    return (broken[-1] if broken else None, kept[0] if kept else None)


# -- exact --------------------------------------------------------------------------------------------------------


def _exact_step(state: DualState, proposal: Proposal, stopping: Stopping) -> DualState:
    points = sorted(state.history, key=_multiplier)
    low, high = _ends(points)
    guess = proposal(points)
    newest = state.history[-1]
    here = _multiplier(newest)
    allowed = float(stopping.allowed(here))
    doubt = max(abs(guess - here), _flat_distance(newest, points, allowed))
    if abs(_violation(newest)) <= stopping.violation_tolerance and doubt <= allowed / 2:
        return resolve(state, "converged", newest.multipliers)
    if low is not None and high is None and _multiplier(low) >= stopping.largest:
        return resolve(state, "infeasible", low.multipliers)
    if state.round >= stopping.budget:
        return out_of_budget(state, stopping)
    return replace(state, multipliers=np.array([_safeguarded(guess, low, high, state.history, stopping)]))


def _flat_distance(newest: Observation, points: Sequence[Observation], near: float) -> float:
    """Return how far the root is at the slope towards the next larger multiplier, as a rule flatter than the root's.

    Where nothing larger was observed: at half the slope towards the next smaller one, if that is ``near`` enough to
    know this place. Violations can flatten twentyfold on the way to the root.
    """
    if _violation(newest) == 0:
        return 0.0
    here = _multiplier(newest)
    above = [point for point in points if _multiplier(point) > here]
    below = [point for point in points if _multiplier(point) < here]
    neighbour = above[0] if above else below[-1]
    if not above and here - _multiplier(neighbour) > 2 * near:
        return np.inf
    drop = (_violation(newest) - _violation(neighbour)) / (_multiplier(neighbour) - here)
    flat = drop if above else drop / 2
    return abs(_violation(newest)) / flat if flat > 0 else np.inf


def _safeguarded(
    guess: float,
    low: Observation | None,
    high: Observation | None,
    history: Sequence[Observation],
    stopping: Stopping,
) -> float:
    """Return ``guess`` where it lies in the bracket and the bracket shrinks, else a step that certainly helps."""
    if high is None:
        assert low is not None
        edge = max(_multiplier(low), stopping.multiplier_tolerance)
        if _violation(low) <= stopping.violation_tolerance:
            return max(guess, edge + float(stopping.allowed(edge))) if guess < 2 * edge else 2 * edge
        step = guess if np.isfinite(guess) and guess > edge else 8 * edge
        return float(min(stopping.largest, np.clip(step, 1.5 * edge, 8 * edge)))
    below = 0.0 if low is None else _multiplier(low)
    above = _multiplier(high)
    if _stalls(history):
        return _middle(below, above)
    return guess if below < guess < above else _middle(below, above)


def _middle(below: float, above: float) -> float:
    """Return the geometric middle of a wide bracket, the arithmetic one of a narrow one."""
    return float(np.sqrt(below * above)) if above > 4 * below > 0 else (below + above) / 2


def _stalls(history: Sequence[Observation]) -> bool:
    """Return whether the newest point left more than half of the smallest violation of its side."""
    newest = _violation(history[-1])
    side = [abs(_violation(point)) for point in history[:-1] if (_violation(point) > 0) == (newest > 0)]
    return bool(side) and abs(newest) > min(side) / 2


def _by_values(points: Sequence[Observation]) -> float:
    """Return the root of ``(p + q m) / (1 + s m)`` through the three points nearest to zero violation."""
    nearest = sorted(points, key=lambda point: abs(_violation(point)))[:3]
    m = np.array([_multiplier(point) for point in nearest])
    v = np.array([_violation(point) for point in nearest])
    if len(nearest) < 3:
        return float(m[0] - v[0] * (m[1] - m[0]) / (v[1] - v[0])) if v[0] != v[1] else np.nan
    numerator = v[1] * v[2] * (m[1] - m[2]) * m[0] + v[2] * v[0] * (m[2] - m[0]) * m[1]
    numerator += v[0] * v[1] * (m[0] - m[1]) * m[2]
    denominator = v[1] * v[2] * (m[1] - m[2]) + v[2] * v[0] * (m[2] - m[0]) + v[0] * v[1] * (m[0] - m[1])
    return float(numerator / denominator) if denominator != 0 else np.nan


def _by_slopes(points: Sequence[Observation]) -> float:
    """Return Newton's step from the point nearest to zero violation."""
    nearest = min(points, key=lambda point: abs(_violation(point)))
    if nearest.slope is None:
        raise ValueError("newton needs the slope of each observation; use bracket")
    slope = float(nearest.slope[0, 0])
    return _multiplier(nearest) - _violation(nearest) / slope if slope < 0 else np.nan


# -- noisy --------------------------------------------------------------------------------------------------------


def _noisy_step(state: DualState, name: str, stopping: Stopping) -> DualState:
    newest = state.history[-1]
    if abs(_violation(newest)) <= stopping.noise(newest)[0]:
        return resolve(state, "converged", newest.multipliers)
    points = sorted(state.history, key=_multiplier)
    m = np.array([_multiplier(point) for point in points])
    errors = np.array([max(float(point.error[0]), stopping.violation_tolerance) for point in points])
    fitted = isotonic(np.array([_violation(point) for point in points]), errors**-2)
    if fitted[-1] > 0 and m[-1] >= stopping.largest and _violation(points[-1]) > stopping.z * errors[-1]:
        return resolve(state, "infeasible", points[-1].multipliers)
    if state.round >= stopping.budget:
        return out_of_budget(state, stopping)
    guess = _by_slopes([newest]) if name == "newton" else np.nan
    following, width = _secant(m, fitted, guess, stopping)
    if width <= stopping.allowed(following):
        index, _ = select(state.history, stopping)
        return resolve(state, "converged", state.history[index].multipliers)
    return replace(state, multipliers=np.array([following]))


def _further(m: FloatArray, fitted: FloatArray, stopping: Stopping) -> float:
    """Return the next multiplier beyond all that broke the limit: by the last secant, within 1.25 and 2 times the last.

    Doubling alone overshoots where the root is near, and an overshoot costs a training as much as any other step.
    """
    last = max(float(m[-1]), stopping.multiplier_tolerance)
    if len(m) < 2 or fitted[-2] <= fitted[-1]:
        return 2 * last
    root = float(m[-1] + fitted[-1] * (m[-1] - m[-2]) / (fitted[-2] - fitted[-1]))
    return float(np.clip(root, NEAREST * last, 2 * last))


def _secant(m: FloatArray, fitted: FloatArray, guess: float, stopping: Stopping) -> tuple[float, float]:
    """Return the next multiplier and the width of what is still in doubt around it."""
    if fitted[-1] > 0:
        return min(stopping.largest, _further(m, fitted, stopping)), np.inf
    if fitted[0] <= 0:
        smallest = float(m[m > 0][0])
        return smallest / 2, smallest / 2
    k = int(np.flatnonzero(fitted > 0)[-1])
    a, b = float(m[k]), float(m[k + 1])
    secant = a + (b - a) * fitted[k] / (fitted[k] - fitted[k + 1])
    step = guess if a < guess < b else secant
    return float(np.clip(step, a + EDGE * (b - a), b - EDGE * (b - a))), b - a


DUAL_RULES: dict[str, Callable[..., DualRule]] = {
    "bracket": bracket,
    "gradient": gradient,
    "newton": newton,
    "projected_newton": projected_newton,
    "fixed": fixed,
}
"""Name -> factory. ``bracket`` and ``newton`` take one constraint; all but ``fixed`` take ``stopping``."""
