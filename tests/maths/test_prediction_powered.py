"""Labels of some prompts and a judge of all: no bias, honest intervals, never worse than the labels alone."""

import math

import numpy as np
import pytest

from dualign.maths.estimates import PoweredMean, prediction_powered_mean, prompt_means, standard_error

ANSWERS = 2
LABELLED, UNLABELLED = 60, 600
TRUTH = 0.3


def world(rng: np.random.Generator, *, quality: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels (NaN on most prompts), a judge with an offset and another unit, and prompt numbers.

    The harm of a prompt is shared by its answers; ``quality`` is the correlation of label and judge within noise.
    """
    prompts = LABELLED + UNLABELLED
    truth = np.repeat(rng.normal(TRUTH, 1, prompts), ANSWERS) + 0.5 * rng.normal(size=prompts * ANSWERS)
    judge = 5 + 3 * (quality * truth + math.sqrt(1 - quality**2) * rng.normal(size=truth.size))
    index = np.repeat(np.arange(prompts), ANSWERS)
    return np.where(index < LABELLED, truth, np.nan), judge, index


def test_the_estimate_by_hand() -> None:
    label = [1.0, 3.0, 0.0, np.nan, np.nan]
    judge = [2.0, 4.0, 1.0, 5.0, 7.0]
    found = prediction_powered_mean(label, judge, [0, 0, 1, 2, 3], weight=0.5)
    # prompt means: labels 2 and 0, judge 3 and 1 there, 5 and 7 elsewhere: 1 + (6 - 2) / 2
    assert found.estimate == pytest.approx(3.0)
    # label - judge / 2 is 0.5 and -0.5: variance 0.5 over 2; judge elsewhere: 0.25 * 2 over 2
    assert found.error == pytest.approx(math.sqrt(0.25 + 0.25))
    assert (found.labelled, found.unlabelled, found.weight) == (2, 2, 0.5)


def test_the_best_weight_by_hand() -> None:
    label, judge = [0.0, 1.0, 2.0, *[np.nan] * 3], [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]
    # covariance 2, judge's variance 4 on either side, as many prompts there as here
    assert prediction_powered_mean(label, judge, range(6)).weight == pytest.approx(2 / (4 + 4))


def test_weight_zero_is_the_mean_of_the_labels() -> None:
    label, judge, index = world(np.random.default_rng(1), quality=0.9)
    found = prediction_powered_mean(label, judge, index, weight=0.0)
    said = ~np.isnan(label)
    assert found.estimate == pytest.approx(prompt_means(label[said], index[said]).mean())
    assert found.error == pytest.approx(standard_error(prompt_means(label[said], index[said])))
    assert found == prediction_powered_mean(label, np.zeros_like(judge), index)


def test_unit_zero_and_sign_of_the_judge_change_nothing() -> None:
    label, judge, index = world(np.random.default_rng(2), quality=0.8)
    found, turned = (prediction_powered_mean(label, j, index) for j in (judge, 100 - 7 * judge))
    assert turned.weight == pytest.approx(-found.weight / 7)
    for field in ("estimate", "low", "high"):
        assert getattr(turned, field) == pytest.approx(getattr(found, field))


def test_a_judge_who_is_the_label_counts_every_prompt() -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(size=660)
    label = np.where(np.arange(660) < 60, truth, np.nan)
    found = prediction_powered_mean(label, truth, np.arange(660))
    # weight 600 / 660 up to the two sample variances: the mean of all, with all prompts' error
    assert found.estimate == pytest.approx(truth.mean(), abs=0.02)
    assert found.error == pytest.approx(truth.std(ddof=1) / math.sqrt(660), rel=0.05)


def simulate(quality: float, runs: int = 1500) -> tuple[list[PoweredMean], list[PoweredMean]]:
    rng = np.random.default_rng(int(100 * quality))
    found, classical = [], []
    for _ in range(runs):
        data = world(rng, quality=quality)
        found.append(prediction_powered_mean(*data))
        classical.append(prediction_powered_mean(*data, weight=0.0))
    return found, classical


@pytest.mark.parametrize(("quality", "ratio"), [(0.9, 0.65), (0.0, 1.03)])
def test_no_bias_honest_coverage_and_a_narrower_interval(quality: float, ratio: float) -> None:
    found, classical = simulate(quality)
    estimates = np.array([one.estimate for one in found])
    assert abs(estimates.mean() - TRUTH) < 3 * estimates.std() / math.sqrt(len(found))
    coverage = np.mean([one.low <= TRUTH <= one.high for one in found])
    assert abs(coverage - 0.95) < 0.02
    # a good judge saves at least a third of the width, a useless one costs next to nothing
    width = np.mean([one.high - one.low for one in found]) / np.mean([one.high - one.low for one in classical])
    assert width < ratio
    # the error that is reported is the error that is made
    assert np.mean([one.error for one in found]) == pytest.approx(estimates.std(), rel=0.06)


def test_answers_of_a_prompt_are_not_independent() -> None:
    label, judge, index = world(np.random.default_rng(4), quality=0.3)
    clustered = prediction_powered_mean(label, judge, index)
    naive = prediction_powered_mean(label, judge, np.arange(index.size))
    assert clustered.error > 1.2 * naive.error


def test_too_little_gives_no_interval() -> None:
    nothing = prediction_powered_mean([np.nan, np.nan], [1.0, 2.0], [0, 1])
    assert math.isnan(nothing.estimate) and nothing.high == math.inf and nothing.unlabelled == 2
    one = prediction_powered_mean([1.0, np.nan], [1.0, 2.0], [0, 1])
    assert (one.estimate, one.low, one.high, one.error) == (1.0, -math.inf, math.inf, math.inf)
    whole = prediction_powered_mean([1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [0, 1, 2])
    assert (whole.estimate, whole.weight, whole.unlabelled) == (2.0, 0.0, 0)


def test_unlabelled_answers_of_a_labelled_prompt_are_left_out() -> None:
    base = prediction_powered_mean([0.0, 1.0, 2.0, np.nan, np.nan], [0.0, 2.0, 3.0, 4.0, 1.0], range(5))
    more = prediction_powered_mean([0.0, 1.0, 2.0, np.nan, np.nan, np.nan], [0.0, 2.0, 3.0, 4.0, 1.0, 99.0],
                                   [0, 1, 2, 3, 4, 0])  # fmt: skip
    assert more == base
