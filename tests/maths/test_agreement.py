"""Agreement of two scores: by hand, against other implementations, and what must not change it."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from dualign.maths.agreement import cohen_kappa, pair_agreement, pairs_within, spearman
from dualign.maths.estimates import rows_of_prompts


def test_spearman_by_hand_and_with_ties() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 80), rng.integers(0, 6, 80)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)


def test_spearman_knows_order_alone() -> None:
    a = np.random.default_rng(1).normal(size=50)
    b = a + np.random.default_rng(2).normal(size=50)
    assert spearman(a, np.exp(b)) == pytest.approx(spearman(a, b))
    assert spearman(a, -b) == pytest.approx(-spearman(a, b))
    assert math.isnan(spearman(a, np.ones(50))) and math.isnan(spearman([], []))


def test_pairs_agree_by_sign_and_a_tie_is_half() -> None:
    found = pair_agreement([1.0, -2.0, 3.0, 0.0, 0.0], [0.1, -9.0, -1.0, 4.0, 0.0])
    assert found.tolist() == [1, 1, 0, 0.5, 0.5]


def test_kappa_by_hand() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, by chance 0.5 * 0.6 + 0.5 * 0.4
    first = [1] * 25 + [0] * 25
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))


def test_kappa_at_its_ends() -> None:
    yes = np.array([True, False, True, False])
    assert cohen_kappa(yes, yes) == 1
    assert cohen_kappa(yes, ~yes) == -1
    assert cohen_kappa(yes, [True] * 4) == 0  # one judge who always says yes is right by chance alone
    assert math.isnan(cohen_kappa([True] * 4, [True] * 4)) and math.isnan(cohen_kappa([], []))


def test_pairs_within_prompts_are_each_there_once() -> None:
    first, second = pairs_within([7, 3, 7, 7, 5])
    assert {frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)} == {
        frozenset({0, 2}), frozenset({0, 3}), frozenset({2, 3})
    }  # fmt: skip
    assert len(first) == 3
    assert [part.size for part in pairs_within([1, 2, 3])] == [0, 0]
    assert [part.size for part in pairs_within([])] == [0, 0]


def test_rows_of_prompts_come_in_the_order_of_the_numbers() -> None:
    assert [rows.tolist() for rows in rows_of_prompts([7, 3, 7, 5])] == [[1], [3], [0, 2]]
