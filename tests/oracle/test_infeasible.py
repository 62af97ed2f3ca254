"""Limits that no policy meets are recognised, alone and together."""

from dataclasses import replace

import numpy as np

from dualign.maths.dual import Stopping
from dualign.maths.dual_rules import bracket, newton
from dualign.maths.exact import FiniteProblem, attainable_costs, optimum
from dualign.maths.projected_newton import projected_newton
from finite_worlds import drive, exact, world


def test_a_limit_at_or_below_the_attainable_cost_is_infeasible() -> None:
    for seed in range(10):
        problem = world(seed)
        low = attainable_costs(problem)
        for limit in (low, low - 0.5):
            best = optimum(replace(problem, limits=limit))
            assert not best.feasible
            assert np.isnan(best.multipliers[0])
            np.testing.assert_allclose(best.expectations.costs, low, atol=1e-9)
        assert optimum(replace(problem, limits=low + 0.05)).feasible


def test_limits_that_exclude_each_other_are_infeasible() -> None:
    # Two responses: the first costs (0, 1), the second (1, 0); both below 0.4 is impossible, below 0.6 is not.
    problem = FiniteProblem(
        np.log(np.full((1, 2), 0.5)), np.zeros((1, 2)), np.eye(2)[None, :, ::-1], np.ones(1), np.full(2, 0.4), 1.0
    )
    assert not optimum(problem).feasible
    assert drive(projected_newton(), exact(problem), np.ones(2)).status == "infeasible"
    assert optimum(replace(problem, limits=np.full(2, 0.6))).feasible


def test_rules_say_infeasible_within_the_budget() -> None:
    for rule in (bracket(Stopping(largest=1e3)), newton(Stopping(largest=1e3)), projected_newton()):
        problem = world(4)
        hopeless = replace(problem, limits=attainable_costs(problem) - 0.2)
        state = drive(rule, exact(hopeless), np.ones(1))
        assert state.status == "infeasible", rule.name
        assert state.round <= 12
