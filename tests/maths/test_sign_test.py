"""The sign test: votes of prompts, exact p-values, and the level it promises."""

import numpy as np
import pytest
from scipy.stats import binomtest

from dualign.maths.agreement import sign_test


def test_votes_and_p_values_by_hand() -> None:
    # prompts 0 to 3 are right once each, prompt 4 twice right and once wrong, prompt 5 wrong, prompt 6 one of each
    difference = [1.0, 2.0, 0.5, 3.0, 1.0, 1.0, -5.0, -1.0, 1.0, -1.0]
    found = sign_test(difference, [0, 1, 2, 3, 4, 4, 4, 5, 6, 6])
    assert (found.right, found.wrong, found.tied) == (5, 1, 1)
    assert found.p_right == pytest.approx(7 / 64)  # at most one wrong of six: (1 + 6) / 2^6
    assert found.p_wrong == pytest.approx(63 / 64)  # all but six right of six


@pytest.mark.parametrize(("right", "wrong"), [(0, 9), (3, 4), (30, 12)])
def test_p_values_are_those_of_the_binomial_test(right: int, wrong: int) -> None:
    found = sign_test([1.0] * right + [-1.0] * wrong, np.arange(right + wrong))
    assert found.p_right == pytest.approx(binomtest(right, right + wrong, alternative="greater").pvalue)
    assert found.p_wrong == pytest.approx(binomtest(right, right + wrong, alternative="less").pvalue)


def test_turning_the_score_swaps_the_p_values() -> None:
    difference, index = np.random.default_rng(1).normal(0.3, 1, 60), np.repeat(np.arange(20), 3)
    there, back = sign_test(difference, index), sign_test(-difference, index)
    assert (there.p_right, there.p_wrong, there.right) == (back.p_wrong, back.p_right, back.wrong)


def test_no_vote_is_no_evidence() -> None:
    for difference, index in (([], []), ([0.0, 0.0], [0, 1]), ([1.0, -1.0], [0, 0])):
        found = sign_test(difference, index)
        assert (found.right, found.wrong, found.p_right, found.p_wrong) == (0, 0, 1.0, 1.0)


def test_many_equal_pairs_of_one_prompt_are_one_vote() -> None:
    assert sign_test(np.ones(500), np.zeros(500)).p_right == 0.5


def test_chance_is_called_right_as_seldom_as_the_level_says() -> None:
    rng = np.random.default_rng(2)
    index = np.repeat(np.arange(60), 3)
    # the three pairs of a prompt mostly go together
    shared = rng.normal(size=(1000, 60)).repeat(3, axis=1) + 0.3 * rng.normal(size=(1000, 180))
    called = np.mean([sign_test(row, index).p_right <= 0.05 for row in shared])
    assert called <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)
