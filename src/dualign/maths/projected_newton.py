"""The dual rule for several constraints: Newton steps on the observed slopes, within what convexity allows."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dualign.maths.dual import (
    DualRule,
    DualState,
    Observation,
    Stopping,
    first_steps,
    initial,
    is_exact,
    out_of_budget,
    residual,
    resolve,
)
from dualign.maths.exact import FloatArray

LARGEST_FACTOR = 4.0
"""A round changes a multiplier by at most this factor."""
SMALLEST_MULTIPLIER = 0.05
"""What the factor counts from in noisy rounds, so that 0 can be left."""
SMALLEST_EXACT = 0.25
"""The same in exact rounds, where a step too far costs one round and not the search."""
DAMPING = 0.1
"""Levenberg damping of noisy rounds, as a share of every diagonal entry of the slope."""
EXACT_DAMPING = 1e-12
"""The same in exact rounds: only what a linear solver needs."""
FLATTEST = 1e-10
"""Standard deviation below which a cost counts as constant; its step then ends at the edge of the box."""
OVERSHOOT = 0.5
"""A step is kept while the derivative at its end is at most this share of the one at its beginning."""
EDGE = 0.2
"""A point between two ends stays this share of the line away from both."""
ALIGNED = 0.7
"""Cosine from which the curvature at the point before tells how it changes along the step."""
CURVATURE_CHANGE = (-3.0, 0.8)
"""Range of the assumed log-change of the curvature over a Newton step: lengths from 0.46 to 2 steps."""


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
    noise, left = stopping.noise(newest), residual(newest.violation, newest.multipliers > 0)
    if np.all(left <= noise) and (not exact or _at_root(newest, stopping)):
        return resolve(state, "converged", newest.multipliers)
    if np.any((newest.multipliers >= stopping.largest) & (newest.violation > noise)):
        return resolve(state, "infeasible", newest.multipliers)
    if state.round >= stopping.budget:
        return out_of_budget(state, stopping)
    point = _exact_point(state.history, stopping.largest) if exact else _noisy_point(newest, stopping.largest)
    return replace(state, multipliers=_unseen(point, state.history))


def _at_root(observation: Observation, stopping: Stopping) -> bool:
    """Return whether Newton's step would move every multiplier by less than half of its tolerance."""
    here = observation.multipliers
    allowed = stopping.allowed(here) / 2
    ahead = _newton_point(observation, np.zeros_like(here), np.full_like(here, np.inf), damping=EXACT_DAMPING)
    return bool(np.all(np.abs(ahead - here) <= allowed))


def _newton_point(observation: Observation, lower: FloatArray, upper: FloatArray, *, damping: float) -> FloatArray:
    """Return the minimum of the observation's quadratic model over the box ``[lower, upper]``.

    A projected Newton step that is only cut at the box need not point downhill; this minimum always does.
    """
    from scipy.optimize import lsq_linear

    assert observation.slope is not None
    spreads = np.sqrt(np.maximum(-np.diag(observation.slope), 0))
    spreads = np.maximum(spreads, max(1e-8 * float(spreads.max()), FLATTEST))
    scaled = -observation.slope / np.outer(spreads, spreads) + damping * np.eye(len(spreads))
    values, vectors = np.linalg.eigh(scaled)
    roots = np.sqrt(np.maximum(values, damping))
    matrix = (vectors * roots).T
    target = matrix @ (observation.multipliers * spreads) + (vectors.T @ (observation.violation / spreads)) / roots
    found = lsq_linear(matrix, target, bounds=(lower * spreads, upper * spreads), method="bvls")
    point = np.asarray(found.x, dtype=np.float64) / spreads
    # A multiplier left at rounding size would be held to |violation| = 0 like a positive one.
    return np.where(point < 1e-9 * max(1.0, float(point.max())), 0.0, point)


def _unseen(point: FloatArray, history: Sequence[Observation]) -> FloatArray:
    """Return ``point``, or the first of its halvings towards the newest observation that was not evaluated."""
    newest = history[-1].multipliers
    for _ in range(50):
        if not any(np.array_equal(point, observation.multipliers) for observation in history):
            break
        point = (point + newest) / 2
    return point


# -- noisy --------------------------------------------------------------------------------------------------------


def _noisy_point(newest: Observation, largest: float) -> FloatArray:
    base = np.maximum(newest.multipliers, SMALLEST_MULTIPLIER)
    lower = np.where(base > SMALLEST_MULTIPLIER, base / LARGEST_FACTOR, 0.0)
    return _newton_point(newest, lower, np.minimum(base * LARGEST_FACTOR, largest), damping=DAMPING)


# -- exact --------------------------------------------------------------------------------------------------------


def _exact_point(history: Sequence[Observation], largest: float) -> FloatArray:
    base, beyond = _base(history)
    if beyond is not None:
        return _cubic_root(base, beyond)
    upper = np.minimum(LARGEST_FACTOR * np.maximum(base.multipliers, SMALLEST_EXACT), largest)
    ahead = _newton_point(base, np.zeros_like(upper), upper, damping=EXACT_DAMPING)
    before = history[-2] if history[-1] is base else history[-1]
    step = (ahead - base.multipliers) * _length(base, before, ahead - base.multipliers, upper)
    return base.multipliers + step * _uncut(base, step, history)


def _along(first: Observation, second: Observation) -> tuple[FloatArray, float, float]:
    """Return the line from ``first`` to ``second`` and the derivative of the dual along it at both ends."""
    line = second.multipliers - first.multipliers
    return line, -float(first.violation @ line), -float(second.violation @ line)


def _curvature(observation: Observation, direction: FloatArray) -> float:
    assert observation.slope is not None
    return max(0.0, -float(direction @ observation.slope @ direction))


def _base(history: Sequence[Observation]) -> tuple[Observation, Observation | None]:
    """Return the point to step from, and the point beyond the minimum of the line that is being searched, if any.

    A step is kept where its end does not overshoot and the dual fell, by the corrected trapezoid of its derivatives,
    held within what convexity allows. A point uphill of the base (the start may be one) tells nothing about a line.
    """
    base, beyond = history[0], None
    for point in history[1:]:
        line, before, after = _along(base, point)
        if before >= 0:
            continue
        rise = (before + after) / 2 + (_curvature(base, line) - _curvature(point, line)) / 12
        if after <= OVERSHOOT * abs(before) and float(np.clip(rise, before, after)) < 0:
            base, beyond = point, None
        else:
            beyond = point
    return base, beyond


def _cubic_root(base: Observation, beyond: Observation) -> FloatArray:
    """Return the root of the cubic through the derivatives and curvatures at both ends, away from the ends."""
    from scipy.optimize import brentq

    line, before, after = _along(base, beyond)
    curve, curve_beyond = _curvature(base, line), _curvature(beyond, line)

    def derivative(t: float) -> float:
        near, far = (1 - t) ** 2, t**2
        return near * ((1 + 2 * t) * before + t * curve) + far * ((3 - 2 * t) * after + (t - 1) * curve_beyond)

    # A kept derivative may end below zero where only the estimated rise spoke against the point.
    share = float(brentq(derivative, 0.0, 1.0)) if after > 0 else 0.5
    return base.multipliers + float(np.clip(share, EDGE, 1 - EDGE)) * line


def _length(base: Observation, before: Observation, step: FloatArray, upper: FloatArray) -> float:
    """Return by what to multiply ``step`` so that the derivative vanishes if the curvature changes exponentially.

    With derivative ``-d``, curvature ``h exp(-k t)``: ``t = -log(1 - k d / h) / k``, and ``d / h`` where k = 0.
    """
    curve, size = _curvature(base, step), float(np.linalg.norm(step))
    other = before.multipliers - base.multipliers
    distance = float(np.linalg.norm(other))
    if curve == 0 or size == 0 or distance == 0:
        return 1.0
    newton = float(base.violation @ step) / curve
    change = 0.0
    cosine = float(step @ other) / (size * distance)
    if abs(cosine) >= ALIGNED and _curvature(before, step) > 0:
        rate = np.log(curve / _curvature(before, step)) / (cosine * distance / size)
        change = float(np.clip(rate * newton, *CURVATURE_CHANGE))
    factor = -np.log1p(-change) / change if abs(change) > 1e-6 else 1.0
    return min(newton * factor, _room(base.multipliers, step, upper))


def _room(here: FloatArray, step: FloatArray, upper: FloatArray) -> float:
    """Return how many times ``step`` fits between 0 and ``upper``: cut at the box it might point uphill."""
    moving = step != 0
    edge = np.where(step > 0, upper, 0.0)
    return float(((edge - here)[moving] / step[moving]).min())


def _uncut(base: Observation, step: FloatArray, history: Sequence[Observation]) -> float:
    """Return 1 where ``step`` ends in no excluded half-space, else half of the way to the first that it enters."""
    share = 1.0
    for point in history:
        room = float(point.violation @ (base.multipliers - point.multipliers))
        loss = -float(point.violation @ step)
        if room > 0 and loss >= room:
            share = min(share, 0.5 * room / loss)
    return share
