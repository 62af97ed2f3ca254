"""Projected Newton on the dual from observations alone: any number of constraints, no dual value needed.

Along a direction the derivative of the dual is ``-violation . direction``, which is observed; the dual is convex, so
the sign of that derivative tells on which side of the line's minimum a point lies. Noisy observations are damped
(Levenberg) and every multiplier changes by a bounded factor a round.

Source: Bertsekas 1982, "Projected Newton methods" (active set); the line search on derivatives is a reconstruction.
"""

from dataclasses import replace

import numpy as np

from dualign.maths.dual_rule import (
    DualRule,
    DualState,
    Observation,
    Stopping,
    first_steps,
    initial,
    is_exact,
    resolve,
    select,
)
from dualign.maths.finite import FloatArray

LARGEST_FACTOR = 4.0
"""A noisy round changes a multiplier by at most this factor."""
SMALLEST_MULTIPLIER = 0.05
"""What the factor counts from, so that 0 can be left."""
DAMPING = 0.1
"""Levenberg damping of noisy rounds, as a share of the slope's mean diagonal."""


def projected_newton(stopping: Stopping = Stopping()) -> DualRule:  # noqa: B008 (frozen)
    """Return the rule for several constraints; every observation must bring its slope matrix."""

    def update(observation: Observation, state: DualState) -> DualState:
        if observation.slope is None:
            raise ValueError("projected_newton needs the slope of each observation, got None")
        state, settled = first_steps(observation, state, stopping)
        return state if settled else _step(state, stopping)

    return DualRule("projected_newton", initial, update)


def _step(state: DualState, stopping: Stopping) -> DualState:
    newest = state.history[-1]
    exact = is_exact(state.history)
    noise = np.maximum(stopping.violation_tolerance, stopping.z * newest.error)
    move = _direction(newest, damping=0.0 if exact else DAMPING)
    allowed = np.maximum(stopping.multiplier_tolerance, stopping.relative_tolerance * newest.multipliers) / 2
    if np.all(_residual(newest) <= noise) and (not exact or np.all(np.abs(move) <= allowed)):
        return resolve(state, "converged", newest.multipliers)
    if np.any((newest.multipliers >= stopping.largest) & (newest.violation > noise)):
        return resolve(state, "infeasible", newest.multipliers)
    if state.round >= stopping.budget:
        index, _ = select(state.history, stopping)
        return resolve(state, "budget", state.history[index].multipliers)
    following = _exact_move(state, move) if exact else _capped(newest.multipliers, move)
    return replace(state, multipliers=np.clip(following, 0.0, stopping.largest))


def _residual(observation: Observation) -> FloatArray:
    """Return what the optimality conditions leave: |violation| at a positive multiplier, else its positive part."""
    positive = np.maximum(observation.violation, 0)
    return np.where(observation.multipliers > 0, np.abs(observation.violation), positive)


def _direction(observation: Observation, *, damping: float) -> FloatArray:
    """Return the projected Newton step, active set excluded, already cut at zero multipliers."""
    assert observation.slope is not None
    here, violation = observation.multipliers, observation.violation
    free = ~((here <= 1e-12) & (violation < 0))
    step = np.zeros_like(here)
    for _ in range(len(here) + 1):
        if not np.any(free):
            break
        hessian = -observation.slope[np.ix_(free, free)]
        scale = float(np.trace(hessian)) / int(free.sum())
        ridge = (damping + 1e-12) * scale + 1e-300
        step = np.zeros_like(here)
        step[free] = np.linalg.solve(hessian + ridge * np.eye(int(free.sum())), violation[free])
        crossing = free & (here + step < 0) & (here <= 1e-12)
        if not np.any(crossing):
            break
        free &= ~crossing
    return np.maximum(here + step, 0.0) - here


def _capped(here: FloatArray, move: FloatArray) -> FloatArray:
    base = np.maximum(here, SMALLEST_MULTIPLIER)
    lower = np.where(base > SMALLEST_MULTIPLIER, base / LARGEST_FACTOR, 0.0)
    return np.clip(here + move, lower, base * LARGEST_FACTOR)


def _exact_move(state: DualState, move: FloatArray) -> FloatArray:
    """Return the next point: a step back on the last line where it overshot, else the capped Newton step."""
    newest = state.history[-1]
    if state.round >= 3:
        origin = min(state.history[:-1], key=lambda observation: float(np.abs(_residual(observation)).max()))
        line = newest.multipliers - origin.multipliers
        before, after = float(-origin.violation @ line), float(-newest.violation @ line)
        if before < 0 and after > 0.5 * abs(before):
            share = float(np.clip(before / (before - after), 0.1, 0.9))
            return origin.multipliers + share * line
    base = np.maximum(newest.multipliers, 0.25)
    following: FloatArray = np.minimum(newest.multipliers + move, 8 * base)
    return following
