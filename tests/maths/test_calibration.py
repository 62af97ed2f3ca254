"""Shares and calibration: by hand, by what repetition must not change, and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualign.maths.agreement import (
    calibration_noise,
    clustered_mean,
    clustered_share,
    expected_calibration_error,
    reliability_table,
)

HALVES = [0.0, 0.5, 1.0]


def test_the_clustered_error_by_hand():
    # prompts (1, 1), (0), (0): mean 1/2, sums of residuals 1, -1/2, -1/2; sqrt(3/2 * 1.5) / 4
    mean, error = clustered_mean([1, 1, 0, 0], [7, 7, 8, 9])
    assert (mean, error) == (0.5, pytest.approx(math.sqrt(2.25) / 4))


def test_one_row_a_prompt_is_the_usual_error():
    values = np.random.default_rng(0).normal(size=50)
    assert clustered_mean(values, range(50))[1] == pytest.approx(values.std(ddof=1) / math.sqrt(50))


def test_repeated_rows_of_a_prompt_add_no_certainty():
    values = np.random.default_rng(1).random(30)
    once = clustered_mean(values, range(30))
    assert clustered_mean(np.repeat(values, 5), np.repeat(range(30), 5)) == pytest.approx(once)


@pytest.mark.parametrize(("values", "prompts", "interval"), [
    ([], [], (0, 1)),
    ([1, 0, 1], [4, 4, 4], (0, 1)),
    ([1] * 20, range(20), (0.025 ** (1 / 20), 1)),
    ([0] * 20, range(20), (0, 1 - 0.025 ** (1 / 20))),
])  # fmt: skip
def test_what_cannot_be_told_has_a_wide_interval(values, prompts, interval):
    share = clustered_share(values, list(prompts))
    assert (share.low, share.high) == pytest.approx(interval)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    prompts = np.repeat(np.arange(60), rng.integers(1, 9, 60))
    held = 0
    for _ in range(400):
        chance = rng.beta(1.3, 0.7, 60)  # prompts differ, so that their rows are correlated; mean 0.65
        share = clustered_share(rng.random(prompts.size) < chance[prompts], prompts)
        held += share.low <= 0.65 <= share.high
    assert 0.92 <= held / 400 <= 0.98


def test_the_calibration_error_by_hand():
    # below 1/2: forecasts 0.2 and 0.4, none true: off by 0.3; above: 0.6, 0.7, 0.8, two true: off by 0.1 / 3
    forecast, outcome = [0.2, 0.4, 0.6, 0.7, 0.8], [0, 0, 1, 0, 1]
    assert expected_calibration_error(forecast, outcome, edges=HALVES) == pytest.approx((0.6 + 0.1) / 5)
    low, high = reliability_table(forecast, outcome, range(5), edges=HALVES)
    assert (low.forecast, low.observed.value, low.observed.n) == (pytest.approx(0.3), 0, 2)
    assert (high.forecast, high.observed.value, high.observed.n) == (pytest.approx(0.7), pytest.approx(2 / 3), 3)


def test_edges_belong_to_the_bin_above_them_and_the_last_one_to_the_last_bin():
    bins = reliability_table([0.0, 0.5, 1.0], [0, 0, 1], range(3), edges=HALVES)
    assert [part.observed.n for part in bins] == [1, 2]


def test_a_forecast_outside_the_edges_is_refused():
    with pytest.raises(ValueError, match="from 0.4 to 0.7"):
        expected_calibration_error([0.4, 0.7], [0, 1], edges=[0.5, 1.0])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_one_bin_gives_the_difference_of_the_means_and_more_bins_no_less(rows):
    forecast, outcome = np.array([p for p, _ in rows]), np.array([float(o) for _, o in rows])
    one = expected_calibration_error(forecast, outcome, edges=[0, 1])
    assert one == pytest.approx(abs(forecast.mean() - outcome.mean()))
    assert expected_calibration_error(forecast, outcome, edges=HALVES) >= one - 1e-12


def test_noise_is_what_true_forecasts_show_on_average():
    rng = np.random.default_rng(3)
    forecast = rng.random(300)
    edges = np.linspace(0, 1, 11)
    noise = calibration_noise(forecast, edges=edges, seed=0)
    true = [expected_calibration_error(forecast, rng.random(300) < forecast, edges=edges) for _ in range(100)]
    assert noise == pytest.approx(np.mean(true), rel=0.08)
    assert expected_calibration_error(forecast, rng.random(300) < forecast**3, edges=edges) > 3 * noise
