"""The mix of two policies on either side of a limit is the Gibbs policy between them."""

from dataclasses import replace

import numpy as np
import pytest

from dualign.errors import UsageError
from dualign.maths.dual import fixed
from dualign.maths.exact import expectations, log_policy
from dualign.methods.c_dpo import c_dpo
from dualign.methods.loop import mixed_at_limit
from dualign.methods.options import Settings
from dualign.protocols import Problem
from dualign.records import Evaluation, Iterate
from dualign.worlds.solving import SolveSettings, solve
from dualign.worlds.tabular import TabularBackend
from small_worlds import small_world

WORLD = small_world(3, beta=0.5)


def problem() -> Problem:
    backend, finite = TabularBackend(WORLD), WORLD.problem()

    def evaluate(policy: object) -> Evaluation:
        found = expectations(finite, policy.state)
        return Evaluation(found.reward, 0.0, found.costs, np.zeros(1), np.zeros(1), found.kl, 0.0, 4)

    return Problem(
        backend=backend, groups=WORLD.groups(), limits=finite.limits, reference=backend.reference, evaluate=evaluate,
        beta=finite.beta, seed=0,
    )  # fmt: skip


def at(given: Problem, multiplier: float) -> Iterate:
    return next(c_dpo(given, Settings(fixed(np.array([multiplier])), np.array([multiplier]))))


def test_the_mix_is_the_gibbs_policy_of_the_mixed_multiplier() -> None:
    given = problem()
    low, high = at(given, 0.4), at(given, 2.5)
    limit = 0.5 * (low.evaluation.costs + high.evaluation.costs)
    mixed = mixed_at_limit(replace(given, limits=limit), [low, high])
    assert mixed is not None
    # the limit is half way between the costs, so the share is one half
    assert mixed.multipliers[0] == pytest.approx(1.45)
    np.testing.assert_allclose(mixed.policy.state, log_policy(WORLD.problem(), np.array([1.45])), atol=1e-6)
    assert high.evaluation.costs[0] < mixed.evaluation.costs[0] < low.evaluation.costs[0]


def test_nothing_lies_between_policies_on_one_side() -> None:
    given = replace(problem(), limits=np.array([1e3]))
    assert mixed_at_limit(given, [at(given, 0.4), at(given, 2.5)]) is None


def test_two_limits_are_refused() -> None:
    with pytest.raises(UsageError, match="one limit, 2 are given"):
        mixed_at_limit(replace(problem(), limits=np.zeros(2)), [])


def test_solve_adds_it_once() -> None:
    plain, mixed = (solve(WORLD, SolveSettings(interpolate=value)).figures for value in (False, True))
    assert len(mixed["iterates"]) == len(plain["iterates"]) + 1
    assert mixed["iterates"][-1]["fit_distance"] < 1e-6
    assert mixed["objective"] == pytest.approx(plain["objective"], abs=1e-3) and mixed["limits_met"]
