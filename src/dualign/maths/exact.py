"""The exact optimum of a finite problem: the oracle that everything else is measured against."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dualign.maths.finite import (
    Expectations,
    FiniteProblem,
    FloatArray,
    dual_gradient,
    dual_hessian,
    dual_value,
    expectations,
    log_policy,
)

TOLERANCE = 1e-10
"""Largest optimality residual, in within-prompt standard deviations of the costs."""
ROUNDS = 200
MARGIN = 1e-9
"""Limits are attainable when some policy stays below all of them by this many standard deviations, and are not when
none comes as close as this. In between, where no linear programme can tell, a root of the dual decides."""
ROOT_DOUBT = 1e-3
"""Newton's step, as a share of 1 + multiplier, up to which a residual is a root and not a dual that falls for ever."""


@dataclass(frozen=True, slots=True)
class Optimum:
    """The solution of a finite problem, or the proof that it has none."""

    feasible: bool
    """Whether some policy stays strictly below every limit."""
    multipliers: FloatArray
    """Shape ``[constraint]``; NaN where infeasible."""
    log_probs: FloatArray
    """Shape ``[prompt, response]``; where infeasible, of the policy with the smallest worst violation."""
    expectations: Expectations
    attainable: FloatArray
    """Shape ``[constraint]``: the smallest expected cost of any policy, each limit alone."""


def attainable_costs(problem: FiniteProblem) -> FloatArray:
    """Return shape ``[constraint]``: the expected cost when every prompt gets its cheapest response."""
    support = np.isfinite(problem.log_reference)[:, :, None]
    cheapest: FloatArray = np.where(support, problem.costs, np.inf).min(axis=1)
    return problem.prompt_weights @ cheapest


def cost_spreads(problem: FiniteProblem) -> FloatArray:
    """Return shape ``[constraint]``: pooled within-prompt SD of each cost on the reference; 1 where constant."""
    unit = replace(problem, reward=np.zeros_like(problem.reward))
    variances = np.diag(dual_hessian(unit, np.zeros(len(problem.limits)))) * problem.beta
    deviations = np.sqrt(np.maximum(variances, 0))
    return np.where(deviations > 0, deviations, 1.0)


def optimum(problem: FiniteProblem) -> Optimum:
    """Return the optimum by projected Newton on the dual, in scaled costs, with ``scipy`` where it stalls.

    A limit equal to the attainable cost counts as infeasible: no finite multiplier reaches it. One within ``MARGIN`` of
    it counts as feasible where finite multipliers do, which proves their Gibbs policy optimal.
    """
    attainable = attainable_costs(problem)
    spreads = cost_spreads(problem)
    scaled = replace(problem, costs=problem.costs / spreads, limits=problem.limits / spreads)
    if np.all(dual_gradient(scaled, np.zeros(len(spreads))) >= 0):
        return _solved(problem, np.zeros(len(spreads)), attainable)
    probs, worst = _least_violation(scaled)
    if worst > MARGIN:
        return _hopeless(problem, probs, attainable)
    multipliers = _projected_newton(scaled)
    if _residual(scaled, multipliers) > TOLERANCE:
        multipliers = _projected_newton(scaled, _by_scipy(scaled, multipliers))
    if worst >= -MARGIN and not _is_root(scaled, multipliers):
        return _hopeless(problem, probs, attainable)
    return _solved(problem, multipliers / spreads, attainable)


def _solved(problem: FiniteProblem, multipliers: FloatArray, attainable: FloatArray) -> Optimum:
    log_probs = log_policy(problem, multipliers)
    return Optimum(True, multipliers, log_probs, expectations(problem, log_probs), attainable)


def _hopeless(problem: FiniteProblem, probs: FloatArray, attainable: FloatArray) -> Optimum:
    log_probs = _log(probs)
    nothing = np.full(len(problem.limits), np.nan)
    return Optimum(False, nothing, log_probs, expectations(problem, log_probs), attainable)


def _is_root(problem: FiniteProblem, multipliers: FloatArray) -> bool:
    """Return whether the optimality conditions hold and Newton's step stays there.

    Towards an unreachable limit the violation vanishes too, but together with the curvature: the step does not shrink.
    """
    if _residual(problem, multipliers) > TOLERANCE:
        return False
    free = multipliers > 0
    hessian = dual_hessian(problem, multipliers)[np.ix_(free, free)]
    step = np.linalg.lstsq(hessian, dual_gradient(problem, multipliers)[free], rcond=1e-14)[0]
    return bool(np.all(np.abs(step) <= ROOT_DOUBT * (1 + multipliers[free])))


def _log(probs: FloatArray) -> FloatArray:
    return np.log(probs, out=np.full_like(probs, -np.inf), where=probs > 0)


def _least_violation(scaled: FiniteProblem) -> tuple[FloatArray, float]:
    """Return the policy ``[prompt, response]`` that minimises the largest violation, and that violation.

    One limit needs no more than each prompt's cheapest response; several need a linear programme over policies.
    """
    if len(scaled.limits) == 1:
        support = np.isfinite(scaled.log_reference)
        cheapest = np.argmin(np.where(support, scaled.costs[:, :, 0], np.inf), axis=1)
        chosen = np.zeros_like(scaled.log_reference)
        chosen[np.arange(len(cheapest)), cheapest] = 1.0
        return chosen, float((attainable_costs(scaled) - scaled.limits)[0])
    from scipy import sparse
    from scipy.optimize import linprog

    prompt, response = np.nonzero(np.isfinite(scaled.log_reference))
    mass = scaled.prompt_weights[prompt][:, None] * scaled.costs[prompt, response]
    upper = sparse.csr_matrix(np.column_stack([mass.T, -np.ones(mass.shape[1])]))
    ones = np.ones(len(prompt))
    shape = (len(scaled.prompt_weights), len(prompt) + 1)
    simplex = sparse.csr_matrix((ones, (prompt, np.arange(len(prompt)))), shape=shape)
    done: Any = linprog(
        np.append(np.zeros(len(prompt)), 1.0),
        A_ub=upper,
        b_ub=scaled.limits,
        A_eq=simplex,
        b_eq=np.ones(shape[0]),
        bounds=[(0, None)] * len(prompt) + [(None, None)],
        method="highs",
    )
    if not done.success:
        raise ArithmeticError(f"the linear programme of the limits failed: {done.message}")
    probs = np.zeros_like(scaled.log_reference)
    probs[prompt, response] = np.clip(done.x[:-1], 0, 1)
    return probs / probs.sum(axis=1, keepdims=True), float(done.x[-1])


def _residual(problem: FiniteProblem, multipliers: FloatArray) -> float:
    """Return how far the optimality conditions fail: what a unit projected gradient step would move."""
    return float(np.abs(np.maximum(multipliers - dual_gradient(problem, multipliers), 0) - multipliers).max())


def _projected_newton(problem: FiniteProblem, start: FloatArray | None = None) -> FloatArray:
    """Return the minimiser of the dual over non-negative multipliers (Bertsekas 1982), or where it stalled."""
    here = np.zeros(len(problem.limits)) if start is None else start
    for _ in range(ROUNDS):
        slope = dual_gradient(problem, here)
        if _residual(problem, here) <= TOLERANCE / 100:
            break
        free = ~((here <= 1e-12) & (slope > 0))
        hessian = dual_hessian(problem, here)[np.ix_(free, free)]
        ridge = 1e-13 * float(np.trace(hessian)) + 1e-15
        step = np.zeros_like(here)
        step[free] = -np.linalg.solve(hessian + ridge * np.eye(int(free.sum())), slope[free])
        step = np.clip(step, -4 * (1 + here), 4 * (1 + here))
        following = _line_search(problem, here, step, slope)
        if following is None:
            break
        here = following
    return here


def _line_search(problem: FiniteProblem, here: FloatArray, step: FloatArray, slope: FloatArray) -> FloatArray | None:
    """Return the first point of the halved, projected line that lowers the dual (Armijo), or None."""
    value, residual = dual_value(problem, here), _residual(problem, here)
    rounding = 1e-14 * max(1.0, abs(value))
    for halvings in range(50):
        point = np.maximum(here + 0.5**halvings * step, 0)
        promised = 1e-4 * float(slope @ (point - here))
        if dual_value(problem, point) <= value + promised:
            return point
        if abs(promised) < rounding and _residual(problem, point) < residual:
            return point
    return None


def _by_scipy(problem: FiniteProblem, start: FloatArray) -> FloatArray:
    from scipy.optimize import minimize

    done: Any = minimize(
        lambda point: dual_value(problem, point),
        start,
        jac=lambda point: dual_gradient(problem, point),
        bounds=[(0, None)] * len(start),
        method="L-BFGS-B",
        options={"ftol": 1e-16, "gtol": 1e-12, "maxiter": 5000},
    )
    best = np.asarray(done.x, dtype=np.float64)
    return best if dual_value(problem, best) < dual_value(problem, start) else start
