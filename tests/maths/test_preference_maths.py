"""Flips and saturation of labels."""

import numpy as np
import pytest

from dualign.maths.preference import flip_curve, flip_multipliers, label_logit, saturation_share


def test_a_label_flips_once_where_its_sign_changes() -> None:
    reward, cost = np.array([2.0, 1.0, -1.0, 3.0]), np.array([1.0, -1.0, -2.0, 0.0])
    np.testing.assert_array_equal(flip_multipliers(reward, cost), [2.0, np.inf, 0.5, np.inf])
    np.testing.assert_array_equal(flip_curve(reward, cost, np.array([0.0, 0.6, 2.1, 1e9])), [0, 0.25, 0.5, 0.5])
    for multiplier in (0.49, 0.51, 1.99, 2.01):
        flipped = np.sign(reward - multiplier * cost) != np.sign(reward)
        assert flip_curve(reward, cost, np.array([multiplier]))[0] == flipped.mean()


def test_saturation_counts_labels_outside_one_percent() -> None:
    assert saturation_share(np.array([0.0, 4.5, 4.7, -5.0])) == 0.5
    assert label_logit(np.array([3.0]), np.array([1.0]), temperature=4.0)[0] == pytest.approx(0.5)
