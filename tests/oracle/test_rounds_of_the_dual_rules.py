"""The search from start 1 over a hundred random worlds, as `dualign solve` runs it: every answer, and the rounds."""

import numpy as np
import pytest

from dualign.worlds.solving import SolveSettings, solve
from small_worlds import small_world


def solved(rule: str, constraints: int, seed: int) -> tuple[int, float, float]:
    beta = float(np.random.default_rng([seed, 2]).uniform(0.25, 1))
    found = solve(small_world(seed, constraints=constraints, beta=beta), SolveSettings(dual=rule)).figures
    ours, best = (np.array(list(part["multipliers"].values())) for part in (found, found["optimum"]))
    assert found["limits_met"], seed
    error = float((np.abs(ours - best) / np.maximum(0.01 * best, 0.01)).max())
    return found["rounds"], error, found["gap"] / found["parameters"]["reward_sd"]


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "constraints"), [("bracket", 1), ("newton", 1), ("projected_newton", 2)])
def test_a_hundred_worlds(rule: str, constraints: int) -> None:
    rounds, errors, gaps = map(np.array, zip(*(solved(rule, constraints, seed) for seed in range(100)), strict=True))
    assert errors.max() <= 1
    assert gaps.max() <= 1e-3
    if constraints == 1:
        assert np.median(rounds) <= 7
        assert np.percentile(rounds, 95) <= 11
    assert rounds.min() >= 2  # lambda = 0 never meets a limit that binds
