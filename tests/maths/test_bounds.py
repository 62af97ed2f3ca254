"""Upper bounds: theorems, numbers that can be checked by hand, and calibration at the boundary."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from dualign.maths import bounds

_path = Path(__file__).parents[2] / "bench" / "certificates.py"
_spec = importlib.util.spec_from_file_location("bench_certificates", _path)
assert _spec is not None and _spec.loader is not None
worlds = importlib.util.module_from_spec(_spec)
sys.modules["bench_certificates"] = worlds
_spec.loader.exec_module(worlds)

DELTA = 0.05


def normal_costs(n: int = 300, *, mean: float = -3.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 15.0, n)


# --- the simulated costs themselves -----------------------------------------------------------------


@pytest.mark.parametrize("name", worlds.DISTRIBUTIONS)
def test_the_generator_has_the_mean_it_promises(name: str) -> None:
    means = worlds.DISTRIBUTIONS[name].sample(np.random.default_rng(7), (1, 200_000), mean=-1.0).ravel()
    assert means.max() <= worlds.CAP
    assert abs(means.mean() + 1.0) < 4 * means.std() / math.sqrt(means.size)


# --- calibration: the theorem that the certificate rests on ------------------------------------------


@pytest.mark.parametrize("n", [200, 1000])
@pytest.mark.parametrize("name", worlds.DISTRIBUTIONS)
def test_false_certification_at_the_boundary_is_at_most_delta(name: str, n: int) -> None:
    repetitions = 2000
    means = worlds.DISTRIBUTIONS[name].sample(np.random.default_rng([1, n]), (repetitions, n), mean=0.0)
    share = (bounds.betting_log_wealth(means, 0.0, cap=50, delta=DELTA) >= -math.log(DELTA)).mean()
    assert share <= DELTA + 3 * math.sqrt(DELTA * (1 - DELTA) / repetitions)


@pytest.mark.parametrize("name", worlds.DISTRIBUTIONS)
def test_a_mean_far_above_the_limit_is_never_certified(name: str) -> None:
    means = worlds.DISTRIBUTIONS[name].sample(np.random.default_rng(2), (1000, 200), mean=8.0)
    assert not (bounds.betting_log_wealth(means, 0.0, cap=50, delta=DELTA) >= -math.log(DELTA)).any()


def test_it_has_power_where_the_range_bounds_have_none() -> None:
    means = worlds.DISTRIBUTIONS["normal, ICC .8"].sample(np.random.default_rng(3), (300, 1000), mean=-2.0)
    shares = worlds.certified(means, delta=DELTA)
    assert shares["betting"] > 0.95
    assert shares["hoeffding"] < 0.05 < shares["maurer-pontil"] < shares["betting"]


def test_the_anytime_schedule_is_calibrated_too() -> None:
    means = worlds.DISTRIBUTIONS["2 % catastrophes"].sample(np.random.default_rng(4), (2000, 200), mean=0.0)
    wealth = bounds.betting_log_wealth(means, 0.0, cap=50, delta=DELTA, schedule=bounds.anytime)
    assert (wealth >= -math.log(DELTA)).mean() <= DELTA + 3 * math.sqrt(DELTA * (1 - DELTA) / 2000)


def test_the_wealth_is_a_supermartingale_at_the_boundary() -> None:
    means = worlds.DISTRIBUTIONS["skewed mixture, ICC .74"].sample(np.random.default_rng(5), (4000, 50), mean=0.0)
    wealth = np.exp(bounds.betting_log_wealth(means, 0.0, cap=50, delta=DELTA))
    assert wealth.mean() <= 1 + 4 * wealth.std() / math.sqrt(wealth.size)


# --- the betting bound -------------------------------------------------------------------------------


def test_two_bets_by_hand() -> None:
    # gap 10, target log 20. Step 1: variance 100/4 = 25, bet sqrt(2 ln 20 / (25 * 2)), below .9/10.
    # Step 2: the first value has no spread, so the variance is 12.5 and one step is left.
    first = min(math.sqrt(2 * math.log(20) / 50), 0.09)
    log_wealth = math.log1p(first * 4)
    second = min(math.sqrt(2 * (math.log(20) - log_wealth) / 12.5), 0.09)
    expected = log_wealth + math.log1p(second * -2)
    assert bounds.betting_log_wealth([-4.0, 2.0], 0.0, cap=10, delta=DELTA) == pytest.approx(expected, abs=1e-14)


def test_wealth_stays_once_the_target_is_reached() -> None:
    good = np.full(400, -30.0)
    ruin = np.concatenate([good, np.full(400, 50.0)])
    before = bounds.betting_log_wealth(good, 0.0, cap=50, delta=DELTA, schedule=bounds.anytime)
    after = bounds.betting_log_wealth(ruin, 0.0, cap=50, delta=DELTA, schedule=bounds.anytime)
    assert before >= math.log(20)
    assert after == before


@pytest.mark.parametrize("schedule", bounds.SCHEDULES.values(), ids=bounds.SCHEDULES)
def test_bets_depend_on_the_past_alone(schedule: bounds.Schedule) -> None:
    # A change of the last value may move the last factor and nothing before: the ratio is 1 - bet * change.
    values = normal_costs(40)
    wealth = [
        np.exp(bounds.betting_log_wealth([*values[:-1], last], 0.0, cap=50, delta=1e-9, schedule=schedule))
        for last in (-10.0, 0.0, 10.0)
    ]
    assert wealth[0] - wealth[1] == pytest.approx(wealth[1] - wealth[2], rel=1e-9)


def test_the_bound_is_the_largest_mean_that_is_not_rejected() -> None:
    values = normal_costs()
    bound = bounds.betting_upper_bound(values, cap=50, delta=DELTA)
    above = np.linspace(bound + 0.01, 49.9, 3000)
    assert (bounds.betting_log_wealth(values, above, cap=50, delta=DELTA) >= math.log(20) - 1e-12).all()
    assert bounds.betting_log_wealth(values, bound - 0.02, cap=50, delta=DELTA) < math.log(20)
    assert values.mean() < bound < 50


@pytest.mark.parametrize("seed", range(20))
def test_bound_and_test_agree_at_the_limit(seed: int) -> None:
    values = normal_costs(150, mean=-2.2, seed=seed)
    rejected = bool(bounds.betting_log_wealth(values, 0.0, cap=50, delta=DELTA) >= math.log(20) - 1e-12)
    assert rejected == (bounds.betting_upper_bound(values, cap=50, delta=DELTA, include=(0.0,)) <= 0)


def test_the_bound_moves_with_the_units() -> None:
    values = normal_costs()
    bound = bounds.betting_upper_bound(values, cap=50, delta=DELTA)
    moved = bounds.betting_upper_bound(3 * values + 7, cap=157, delta=DELTA)
    assert moved == pytest.approx(3 * bound + 7, abs=1e-6)


def test_more_confidence_and_a_higher_cap_raise_the_bound() -> None:
    values = normal_costs()
    bound = bounds.betting_upper_bound(values, cap=50, delta=0.05)
    assert bounds.betting_upper_bound(values, cap=50, delta=0.01) > bound
    assert bounds.betting_upper_bound(values, cap=5000, delta=0.05) > bound


def test_values_above_the_cap_count_as_the_cap() -> None:
    values = normal_costs()
    wild = np.where(values > 20, 1e9, values)
    assert bounds.betting_upper_bound(wild, cap=20, delta=DELTA) == bounds.betting_upper_bound(
        values, cap=20, delta=DELTA
    )


def test_wealth_counts_values_above_the_cap_as_the_cap() -> None:
    assert bounds.betting_log_wealth([-1.0, 900.0], 0.0, cap=10, delta=DELTA) == bounds.betting_log_wealth(
        [-1.0, 10.0], 0.0, cap=10, delta=DELTA
    )


def test_a_clean_sample_of_200_certifies_two_percent() -> None:
    clean = np.zeros(200)
    assert bounds.betting_upper_bound(clean, cap=1, delta=DELTA) < 0.02
    assert bounds.betting_upper_bound(clean[:100], cap=1, delta=DELTA) > 0.02


# --- the others --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", bounds.BOUNDS)
def test_no_data_gives_the_worst_value(name: str) -> None:
    worst = bounds.BOUNDS[name](np.empty(0), cap=50.0, floor=-50.0, delta=DELTA)
    assert worst == (math.inf if name == "clustered-t" else 50.0)


@pytest.mark.parametrize(("name", "worst"), [("clustered-t", math.inf), ("maurer-pontil", 50.0)])
def test_one_value_has_no_spread_so_the_bound_is_the_worst(name: str, worst: float) -> None:
    assert bounds.BOUNDS[name]([-50.0], cap=50.0, floor=-50.0, delta=DELTA) == worst


def test_one_value_certifies_nothing_by_betting() -> None:
    assert bounds.betting_upper_bound([-50.0], cap=50.0, delta=DELTA) == pytest.approx(50.0, abs=5.0)


def test_all_values_at_the_cap_give_the_cap() -> None:
    assert bounds.betting_upper_bound(np.full(500, 50.0), cap=50.0, delta=DELTA) == 50.0


def test_numbers_a_reader_can_check() -> None:
    values = [1.0, 2.0, 3.0, 4.0]  # mean 2.5, variance 5/3, t(3, .95) = 2.353363
    assert bounds.clustered_t(values, delta=DELTA) == pytest.approx(2.5 + 2.353363 * math.sqrt(5 / 12), abs=1e-6)
    wide = {"cap": 100.0, "floor": 0.0, "delta": DELTA}
    assert bounds.hoeffding(np.full(800, 2.5), **wide) == pytest.approx(2.5 + 100 * math.sqrt(math.log(20) / 1600))
    repeated = np.tile(values, 200)
    log_term, n = math.log(40), 800
    variance = 1.25 * n / (n - 1)
    assert bounds.maurer_pontil(repeated, **wide) == pytest.approx(
        2.5 + math.sqrt(2 * variance * log_term / n) + 700 * log_term / (3 * (n - 1))
    )


def test_a_floor_above_values_only_raises_the_bound() -> None:
    values = normal_costs()
    for bound in (bounds.hoeffding, bounds.maurer_pontil):
        assert bound(values, cap=50, floor=-10, delta=DELTA) >= values.mean()
    assert np.clip(values, -10, 50).mean() > values.mean()


def test_clopper_pearson_from_counts() -> None:
    assert bounds.clopper_pearson(0, 150, delta=DELTA) == pytest.approx(1 - 0.05 ** (1 / 150))  # 1.98 %
    assert bounds.clopper_pearson(0, 1000, delta=DELTA) == pytest.approx(0.00299, abs=1e-5)
    assert bounds.clopper_pearson(5, 5, delta=DELTA) == bounds.clopper_pearson(0, 0, delta=DELTA) == 1.0
    bound = bounds.clopper_pearson(7, 100, delta=DELTA)
    assert bounds.binomial_p_value(7, 100, rate=bound) == pytest.approx(DELTA)


def test_a_count_is_never_a_float() -> None:
    with pytest.raises(ValueError, match="7.000000000000001 of 100"):
        bounds.clopper_pearson(100 * 0.07, 100, delta=DELTA)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from 0 to n"):
        bounds.clopper_pearson(3, 2, delta=DELTA)


@pytest.mark.parametrize("name", bounds.BOUNDS)
def test_contract_a_data_set_a_row(name: str) -> None:
    rows = np.stack([normal_costs(seed=1), normal_costs(seed=2)])
    bound = bounds.BOUNDS[name]
    together = bound(rows, cap=50.0, floor=-50.0, delta=DELTA)
    assert together.shape == (2,)
    assert together[1] == pytest.approx(float(bound(rows[1], cap=50.0, floor=-50.0, delta=DELTA)))
    assert (together > rows.mean(1)).all()


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan])
def test_delta_is_a_probability(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        bounds.betting_upper_bound([1.0], cap=2.0, delta=delta)


def test_a_limit_at_the_cap_is_no_hypothesis() -> None:
    with pytest.raises(ValueError, match="below the cap"):
        bounds.betting_log_wealth([1.0], 2.0, cap=2.0, delta=DELTA)


def test_the_p_value_is_the_inverse() -> None:
    assert bounds.p_value([0.0, 0.5, 1.0, 20.0]) == pytest.approx([1.0, 1.0, 1.0, 0.05])
