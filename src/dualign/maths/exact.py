"""A finite constrained problem and its dual: every expectation is a sum, so every figure is exact.

Maximise ``E[reward] - beta KL(policy || reference)`` subject to ``E[cost_i] <= limit_i``. The dual function

    g(multipliers) = beta E_x log E_reference[exp((reward - multipliers . costs) / beta)] + multipliers . limits

is convex; its gradient is ``limits - E[costs]`` and its Hessian ``E_x Cov(costs) / beta``, both under the Gibbs policy
of those multipliers. The covariance is the one *within* prompts: spread between prompts does not enter.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FiniteProblem:
    """Prompts with all their responses; scores, limits and ``beta`` are in one system of units."""

    log_reference: FloatArray
    """Shape ``[prompt, response]``, log-probabilities that sum to one a prompt; ``-inf`` marks padding."""
    reward: FloatArray
    """Shape ``[prompt, response]``, higher is better; padding holds any finite number."""
    costs: FloatArray
    """Shape ``[prompt, response, constraint]``, higher is worse; padding holds any finite number."""
    prompt_weights: FloatArray
    """Shape ``[prompt]``, sums to one."""
    limits: FloatArray
    """Shape ``[constraint]``: the largest expected cost that is allowed."""
    beta: float
    """Strength of the KL term; larger keeps the policy nearer to the reference."""

    def __post_init__(self) -> None:
        prompts, responses = self.log_reference.shape
        shapes = {
            "reward": (self.reward.shape, (prompts, responses)),
            "costs": (self.costs.shape, (prompts, responses, len(self.limits))),
            "prompt_weights": (self.prompt_weights.shape, (prompts,)),
        }
        for name, (given, wanted) in shapes.items():
            if given != wanted:
                raise ValueError(f"{name} must have shape {wanted}, got {given}")
        if not self.beta > 0:
            raise ValueError(f"beta must be positive, got {self.beta}")
        if not np.allclose(_log_sum_exp(self.log_reference), 0, atol=1e-8):
            raise ValueError("log_reference must sum to probability one in every prompt")
        if not np.isclose(self.prompt_weights.sum(), 1, atol=1e-8):
            raise ValueError(f"prompt_weights must sum to 1, got {self.prompt_weights.sum()}")


@dataclass(frozen=True, slots=True)
class Expectations:
    """What a policy achieves, averaged over prompts."""

    reward: float
    costs: FloatArray
    """Shape ``[constraint]``."""
    kl: float
    """KL(policy || reference) in nats."""
    objective: float
    """``reward - beta * kl``."""


def _log_sum_exp(logits: FloatArray) -> FloatArray:
    peak = logits.max(axis=1, keepdims=True)
    total: FloatArray = np.log(np.exp(logits - peak).sum(axis=1)) + peak[:, 0]
    return total


def _tilted(problem: FiniteProblem, multipliers: FloatArray) -> FloatArray:
    return problem.log_reference + (problem.reward - problem.costs @ multipliers) / problem.beta


def log_policy(problem: FiniteProblem, multipliers: FloatArray) -> FloatArray:
    """Return the Gibbs policy ``reference * exp((reward - multipliers . costs) / beta) / Z``, as log-probabilities."""
    logits = _tilted(problem, multipliers)
    return logits - _log_sum_exp(logits)[:, None]


def dual_value(problem: FiniteProblem, multipliers: FloatArray) -> float:
    """Return ``g(multipliers)``, the best Lagrangian value of any policy; the mean over prompts is outside the log."""
    log_normalisers = _log_sum_exp(_tilted(problem, multipliers))
    return float(problem.beta * problem.prompt_weights @ log_normalisers + multipliers @ problem.limits)


def mean_costs(problem: FiniteProblem, log_probs: FloatArray) -> FloatArray:
    """Return shape ``[constraint]``: the expected costs of the policy ``log_probs[prompt, response]``."""
    mass = problem.prompt_weights[:, None] * np.exp(log_probs)
    costs: FloatArray = np.einsum("jk,jki->i", mass, problem.costs)
    return costs


def dual_gradient(problem: FiniteProblem, multipliers: FloatArray) -> FloatArray:
    """Return shape ``[constraint]``: ``limits - E[costs]`` under the Gibbs policy; negative where a limit is broken."""
    return problem.limits - mean_costs(problem, log_policy(problem, multipliers))


def prompt_covariances(problem: FiniteProblem, log_probs: FloatArray) -> FloatArray:
    """Return shape ``[prompt, constraint, constraint]``: the covariance of the costs within each prompt."""
    probs = np.exp(log_probs)
    means = np.einsum("jk,jki->ji", probs, problem.costs)
    centred = problem.costs - means[:, None, :]
    covariances: FloatArray = np.einsum("jk,jkh,jki->jhi", probs, centred, centred)
    return covariances


def dual_hessian(problem: FiniteProblem, multipliers: FloatArray) -> FloatArray:
    """Return shape ``[constraint, constraint]``: ``E_x Cov(costs) / beta``, positive semidefinite."""
    covariances = prompt_covariances(problem, log_policy(problem, multipliers))
    hessian: FloatArray = np.einsum("j,jhi->hi", problem.prompt_weights, covariances) / problem.beta
    return hessian


def prompt_kl(log_probs: FloatArray, other: FloatArray) -> FloatArray:
    """Return shape ``[prompt]``: KL(policy || other) in nats; a response of probability zero adds nothing."""
    probs = np.exp(log_probs)
    ratios = np.subtract(log_probs, other, out=np.zeros_like(log_probs), where=probs > 0)
    divergences: FloatArray = (probs * ratios).sum(axis=1)
    return divergences


def expectations(problem: FiniteProblem, log_probs: FloatArray) -> Expectations:
    """Return reward, costs, KL and objective of the policy with ``[prompt, response]`` log-probabilities."""
    reward = float(problem.prompt_weights @ (np.exp(log_probs) * problem.reward).sum(axis=1))
    kl = float(problem.prompt_weights @ prompt_kl(log_probs, problem.log_reference))
    return Expectations(reward, mean_costs(problem, log_probs), kl, reward - problem.beta * kl)


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
    log_probs = np.log(probs, out=np.full_like(probs, -np.inf), where=probs > 0)
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
