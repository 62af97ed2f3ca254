"""What is said of fitted scores: numbers by hand, ties, categories, answers that stand in several pairs."""

import numpy as np
import pytest

from dualign.data.preferences import Answer
from dualign.records import Prompt
from dualign.scorers.fitting.entry import measure, order_forecasts, sign_forecasts
from dualign.scorers.fitting.inputs import LabelledPair


def pair(prompt, worse, better, *, safe=(False, True), kinds=((), ())):
    first = Answer(worse, safe=safe[0], categories=frozenset(kinds[0]))
    return LabelledPair(Prompt(prompt), first, Answer(better, safe=safe[1], categories=frozenset(kinds[1])))


PAIRS = [
    pair("p", "a", "b", kinds=(("drugs",), ())),
    pair("p", "a", "c", kinds=(("drugs",), ()), safe=(False, False)),
    pair("q", "d", "e", kinds=(("drugs", "theft"), ())),
    pair("r", "f", "g", safe=(True, True)),
]
HIGHER, LOWER = np.array([2.0, 2.0, -1.0, -0.5]), np.array([-1.0, 3.0, -1.0, -2.0])


def test_a_tie_is_no_hit_and_half_an_outcome():
    forecasts = order_forecasts(PAIRS, HIGHER, LOWER)
    assert forecasts.hit.tolist() == [1, 0, 0, 1]
    assert forecasts.outcome.tolist() == [1, 0, 0.5, 1]
    assert forecasts.probability == pytest.approx([1 / (1 + np.exp(-x)) for x in (3, 1, 0, 1.5)])


def test_an_answer_of_two_pairs_has_one_sign():
    forecasts = sign_forecasts(PAIRS, HIGHER, LOWER)
    # a unsafe at 2, b safe at -1, c unsafe at 3, d unsafe at -1, e safe at -1, f safe at -0.5, g safe at -2
    assert forecasts.hit.tolist() == [1, 1, 1, 0, 1, 1, 1]
    assert forecasts.outcome.tolist() == [1, 0, 1, 1, 0, 0, 0]


def test_shares_by_category():
    found = measure(PAIRS, HIGHER, LOWER, signed=True, seed=0)
    assert found["accuracy"]["value"] == 0.5 and found["accuracy"]["n_prompts"] == 3
    assert found["sign_accuracy"]["value"] == pytest.approx(6 / 7)
    kinds = found["by_category"]
    assert {name: figures["accuracy"]["n"] for name, figures in kinds.items()} == {"drugs": 3, "none": 1, "theft": 1}
    assert list(kinds) == ["drugs", "none", "theft"]  # the largest first
    assert kinds["drugs"]["accuracy"]["value"] == pytest.approx(1 / 3)
    assert kinds["drugs"]["sign_accuracy"]["value"] == 0.5  # a is right, d is wrong
    assert found["mean"] == pytest.approx(np.mean([*HIGHER, *LOWER]))


def test_a_kind_that_no_pair_is_of_has_the_figures_of_answers_alone():
    found = measure([pair("p", "a", "b", kinds=(("drugs",), ()))], HIGHER[:1], LOWER[:1], signed=True, seed=0)
    assert list(found["by_category"]) == ["drugs", "none"]
    alone = found["by_category"]["none"]
    assert alone["accuracy"] is None and alone["calibration"]["order"] is None and alone["sign_accuracy"]["n"] == 1


def test_no_categories_and_no_flags_leave_those_figures_out():
    plain = [pair("p", "a", "b", safe=(None, None)), pair("q", "c", "d", safe=(None, None))]
    found = measure(plain, np.array([1.0, 2.0]), np.zeros(2), signed=False, seed=0)
    assert found["sign_accuracy"] is None and found["calibration"]["sign"] is None and not found["by_category"]


def test_forecasts_that_are_drawn_from_the_scores_are_calibrated_and_stretched_ones_are_not():
    rng = np.random.default_rng(0)
    costs = rng.normal(size=(4000, 2))
    swap = rng.random(4000) < 1 / (1 + np.exp(costs[:, 0] - costs[:, 1]))
    costs[swap] = costs[swap][:, ::-1]
    flags = rng.random((4000, 2)) > 1 / (1 + np.exp(-costs))
    pairs = [pair(f"p{i}", "a", "b", safe=tuple(map(bool, flags[i]))) for i in range(4000)]
    true = measure(pairs, costs[:, 0], costs[:, 1], signed=True, seed=0)
    stretched = measure(pairs, 3 * costs[:, 0], 3 * costs[:, 1], signed=True, seed=0)
    for figures in true["calibration"].values():
        assert figures["error"] < 2.5 * figures["noise"]
    for figures in stretched["calibration"].values():
        assert figures["error"] > 5 * figures["noise"]
    assert stretched["accuracy"] == true["accuracy"]
