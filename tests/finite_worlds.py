"""Random finite worlds of the oracles: 4 prompts x 6 responses, Dirichlet reference, normal scores."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dualign.maths.dual import DualRule, DualState, Observation
from dualign.maths.exact import (
    FiniteProblem,
    FloatArray,
    attainable_costs,
    dual_gradient,
    dual_hessian,
    expectations,
    log_policy,
)


def world(seed: int, *, constraints: int = 1, beta: float = 0.25) -> FiniteProblem:
    """Return a world whose limits lie between the attainable cost and that of multiplier 0."""
    rng = np.random.default_rng(seed)
    problem = FiniteProblem(
        np.log(rng.dirichlet(np.ones(6), size=4)),
        rng.normal(size=(4, 6)),
        rng.normal(size=(4, 6, constraints)),
        rng.dirichlet(np.ones(4)),
        np.zeros(constraints),
        beta,
    )
    free = expectations(problem, log_policy(problem, np.zeros(constraints))).costs
    low = attainable_costs(problem)
    return replace(problem, limits=low + rng.uniform(0.1, 0.9) * (free - low))


def binding(seed: int, *, beta: float = 0.25) -> FiniteProblem:
    """Return a world of two limits that both bind, by construction: they are the costs of positive multipliers."""
    rng = np.random.default_rng(seed)
    problem = world(seed, constraints=2, beta=beta)
    costs = expectations(problem, log_policy(problem, rng.uniform(0.3, 2.0, size=2))).costs
    return replace(problem, limits=costs)


def exact(problem: FiniteProblem) -> Callable[[FloatArray], Observation]:
    """Return the observation of the Gibbs policy of given multipliers, without error."""

    def look(multipliers: FloatArray) -> Observation:
        zeros = np.zeros_like(multipliers)
        return Observation(
            multipliers, -dual_gradient(problem, multipliers), zeros, -dual_hessian(problem, multipliers)
        )

    return look


def drive(rule: DualRule, look: Callable[[FloatArray], Observation], start: FloatArray) -> DualState:
    """Return the state in which ``rule`` ended."""
    state = rule.init(start)
    while state.status == "running":
        state = rule.update(look(state.multipliers), state)
    return state
