"""Costs from yes/no labels: bias and error of the corrected log-odds, and that agreement stays finite."""

import numpy as np
import pytest

from dualign.maths.preference import log_odds


@pytest.mark.parametrize(("labels", "error"), [(4, 0.99), (16, 0.63), (64, 0.35)])
def test_log_odds_have_the_bias_and_error_that_the_page_says(labels: int, error: float) -> None:
    rng = np.random.default_rng(0)
    cost = rng.normal(0, 1.5, 200_000)
    found = log_odds(rng.binomial(labels, 1 / (1 + np.exp(-cost))).astype(float), labels=labels)
    assert abs(np.mean(found - cost)) < 0.02
    assert np.sqrt(np.mean((found - cost) ** 2)) == pytest.approx(error, abs=0.01)


def test_log_odds_by_hand() -> None:
    assert log_odds(np.array([0.0, 2.0, 4.0]), labels=4) == pytest.approx([-np.log(9), 0, np.log(9)])
    for counts, labels in (([5.0], 4), ([-1.0], 4), ([0.0], 0)):
        with pytest.raises(ValueError, match="between 0 and"):
            log_odds(np.array(counts), labels=labels)
