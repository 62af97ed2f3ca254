"""Dual rules: two steps by hand, known roots, how many rounds, noise."""

from dataclasses import replace

import numpy as np
import pytest

from dualign.maths.dual import DualRule, Observation, Stopping, fixed, gradient, margin, select
from dualign.maths.dual_rules import DUAL_RULES, bracket, isotonic, newton
from dualign.maths.exact import FiniteProblem, dual_value, log_policy, optimum
from dualign.maths.projected_newton import projected_newton
from finite_worlds import binding, drive, exact, world

RULES = {"bracket": bracket(), "newton": newton(), "projected_newton": projected_newton(), "gradient": gradient(step=1)}


def seen(multiplier: float, violation: float, error: float = 0.0) -> Observation:
    return Observation(np.array([multiplier]), np.array([violation]), np.array([error]), np.array([[-1.0]]))


@pytest.mark.parametrize("name", RULES)
def test_zero_is_tried_first_and_ends_as_slack_where_the_limit_holds(name: str) -> None:
    rule = RULES[name]
    state = rule.init(np.array([3.0]))
    assert state.multipliers == [0.0]
    assert rule.update(seen(0, -0.1), state).status == "slack"
    assert rule.update(seen(0, -0.1, error=0.1), state).status == "running"
    following = rule.update(seen(0, 0.5), state)
    assert following.multipliers == [3.0]
    assert state.history == ()


def test_gradient_two_rounds_by_hand() -> None:
    rule = gradient(step=0.5)
    state = rule.update(seen(0, 1.0), rule.init(np.array([1.0])))
    state = rule.update(seen(1.0, 0.6), state)
    assert state.multipliers[0] == pytest.approx(1.3)
    state = rule.update(seen(1.3, -4.0), state)
    assert state.multipliers[0] == 0.0


def test_gradient_with_a_step_below_the_bound_never_raises_the_dual() -> None:
    for seed in range(20):
        problem = world(seed, beta=0.5)
        step = 4 * problem.beta / np.ptp(problem.costs, axis=1).max() ** 2
        state = drive(gradient(step=step, stopping=Stopping(budget=3000)), exact(problem), np.ones(1))
        values = [dual_value(problem, point.multipliers) for point in state.history[1:]]
        assert np.all(np.diff(values) <= 1e-12)
        assert state.status == "converged"
        assert state.multipliers[0] == pytest.approx(optimum(problem).multipliers[0], rel=0.01, abs=0.01)


@pytest.mark.parametrize("rule", [bracket(), newton()], ids=["bracket", "newton"])
def test_rounds_over_a_hundred_worlds(rule: DualRule) -> None:
    rounds = []
    for seed in range(100):
        problem = world(seed, beta=float(np.random.default_rng(seed).uniform(0.25, 1)))
        best = optimum(problem)
        state = drive(rule, exact(problem), np.ones(1))
        assert state.status == "converged"
        assert abs(state.multipliers[0] - best.multipliers[0]) <= max(0.01, 0.01 * best.multipliers[0])
        assert gap(problem, state.multipliers) <= 1e-3
        rounds.append(state.round)
    assert np.median(rounds) <= 7
    assert np.percentile(rounds, 95) <= 11


def gap(problem: FiniteProblem, multipliers: np.ndarray) -> float:
    here, best = log_policy(problem, multipliers), optimum(problem).log_probs
    return problem.beta * float(problem.prompt_weights @ (np.exp(here) * (here - best)).sum(axis=1))


def test_projected_newton_finds_two_multipliers() -> None:
    rounds = []
    for seed in range(60):
        problem = binding(seed, beta=0.5)
        if seed % 3 == 0:
            problem = replace(problem, limits=problem.limits + np.array([0.0, 2.0]))
        best = optimum(problem)
        state = drive(projected_newton(), exact(problem), np.ones(2))
        assert state.status in ("converged", "slack")
        assert np.all(np.abs(state.multipliers - best.multipliers) <= np.maximum(0.01, 0.01 * best.multipliers))
        assert gap(problem, state.multipliers) <= 1e-3
        rounds.append(state.round)
    assert np.median(rounds) <= 7
    assert np.percentile(rounds, 95) <= 15


@pytest.mark.parametrize("start", [0.05, 1.0, 20.0])
def test_noisy_bracket_ends_near_the_root(start: float) -> None:
    errors = []
    for seed in range(30):
        problem, rng = world(seed, beta=0.5), np.random.default_rng(seed)
        look = exact(problem)

        def noisy(multipliers: np.ndarray, look=look, rng=rng) -> Observation:  # noqa: ANN001
            clean = look(multipliers)
            return replace(clean, violation=clean.violation + 0.02 * rng.normal(size=1), error=np.array([0.02]))

        state = drive(bracket(Stopping(budget=25)), noisy, np.array([start]))
        assert state.status in ("converged", "budget")
        errors.append(abs(float(look(state.multipliers).violation[0])))
    assert np.median(errors) <= 0.03
    assert np.mean(np.array(errors) < 0.08) >= 0.9


def test_noisy_projected_newton_changes_a_multiplier_by_a_factor_of_four_at_most() -> None:
    rule = projected_newton()
    state = rule.update(seen(0, 9.0, error=0.1), rule.init(np.ones(1)))
    state = rule.update(seen(1.0, 9.0, error=0.1), state)
    assert state.multipliers == [4.0]


def test_isotonic_pools_what_rises() -> None:
    np.testing.assert_allclose(isotonic(np.array([3.0, 1.0, 2.0]), np.ones(3)), [3.0, 1.5, 1.5])
    np.testing.assert_allclose(isotonic(np.array([1.0, 2.0]), np.array([3.0, 1.0])), [1.25, 1.25])


def test_select_takes_the_smallest_multiplier_that_holds_by_its_error() -> None:
    history = [seen(0, 1.0, 0.1), seen(1, -0.1, 0.1), seen(2, -0.3, 0.1), seen(4, -0.9, 0.1)]
    assert select(history, Stopping()) == (2, True)
    assert select(history[:2], Stopping()) == (1, False)


def test_fixed_evaluates_once() -> None:
    rule = fixed(np.array([0.7]))
    state = rule.init(np.ones(1))
    assert state.multipliers == [0.7]
    state = rule.update(seen(0.7, 5.0), state)
    assert (state.status, state.round) == ("converged", 1)


def test_budget_ends_a_rule() -> None:
    state = drive(bracket(Stopping(budget=3)), exact(world(2)), np.array([20.0]))
    assert (state.status, state.round) == ("budget", 3)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="use projected_newton"):
        bracket().init(np.ones(2))
    with pytest.raises(ValueError, match="finite"):
        bracket().update(seen(0, np.nan), bracket().init(np.ones(1)))
    with pytest.raises(ValueError, match="step"):
        gradient(step=0)
    assert set(DUAL_RULES) == {"bracket", "gradient", "newton", "projected_newton", "fixed"}


def test_margin_by_hand() -> None:
    # s = 10, n = 100 twice, delta = .05: 1.6449 + 1.2816 * sqrt(2) = 3.4572.
    assert margin(10, n_tune=100, n_calibration=100, delta=0.05) == pytest.approx(3.4572, abs=1e-4)
    assert margin(10, n_tune=100, n_calibration=100, delta=0.05, width_ratio=2) == pytest.approx(6.9145, abs=1e-4)
