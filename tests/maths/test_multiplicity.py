import numpy as np

from dualign.maths.bounds import MULTIPLICITY, bonferroni, fixed_sequence, holm


def test_known_rejections() -> None:
    p = [0.01, 0.04, 0.02, 0.30]
    assert bonferroni(p, delta=0.05).tolist() == [True, False, False, False]
    assert holm([0.01, 0.04, 0.016, 0.02], delta=0.05).tolist() == [True, True, True, True]
    assert holm(p, delta=0.05).tolist() == [True, False, False, False]  # .02 > .05/3 stops it
    assert fixed_sequence([0.05, 0.01, 0.06, 0.001], delta=0.05).tolist() == [True, True, False, False]


def test_nothing_is_rejected_from_nothing() -> None:
    for rule in MULTIPLICITY.values():
        assert rule([], delta=0.05).tolist() == []


def test_family_wise_error_is_at_most_delta_when_all_are_null() -> None:
    p = np.random.default_rng(0).random((4000, 5))
    for rule in MULTIPLICITY.values():
        wrong = np.mean([rule(row, delta=0.1).any() for row in p])
        assert wrong <= 0.1 + 3 * np.sqrt(0.09 / 4000)


def test_holm_rejects_whatever_bonferroni_does() -> None:
    for row in np.random.default_rng(1).random((500, 4)) ** 3:
        assert (holm(row, delta=0.05) >= bonferroni(row, delta=0.05)).all()
