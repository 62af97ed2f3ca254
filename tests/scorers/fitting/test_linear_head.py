"""The linear head: its derivative, its minimum against another program's, and a decay chosen without leaking."""

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import approx_fprime
from sklearn.linear_model import LogisticRegression

from dualign.scorers.fitting import linear
from dualign.scorers.fitting.linear import (
    OBJECTIVES,
    LinearHead,
    PairFeatures,
    choose_decay,
    fit_linear,
    mean_loss,
    meaning_of_zero,
    objective_name,
)

PAIRS = OBJECTIVES["pairs"](regularisation=0.0)
SIGNED = OBJECTIVES["pairs-and-signs"](regularisation=0.05)


def drawn(seed=0, n=80, width=4, weights=(1.0, -2.0, 0.5, 0.0), bias=0.3):
    """Return pairs whose order and flags are drawn from one linear cost."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, n, width))
    costs = np.column_stack([first, second]).reshape(n, 2, width) @ np.array(weights) + bias
    swap = rng.random(n) < 1 / (1 + np.exp(costs[:, 0] - costs[:, 1]))
    higher, lower = np.where(swap[:, None], second, first), np.where(swap[:, None], first, second)
    flags = np.where(rng.random((n, 2)) < 1 / (1 + np.exp(-costs)), 1.0, -1.0)
    flags = np.where(swap[:, None], flags[:, ::-1], flags)
    return PairFeatures(higher, lower, flags[:, 0], flags[:, 1])


@pytest.mark.parametrize("loss", [PAIRS, SIGNED])
def test_the_slope_is_zero_at_the_minimum_by_finite_differences(loss):
    data, decay = drawn(), 0.1
    head = fit_linear(data, loss, decay=decay)

    def objective(point):
        moved = LinearHead(point[:4], point[4])
        return mean_loss(moved, data, loss) + decay / 2 * point[:4] @ point[:4]

    point = np.append(head.weights, head.bias)
    assert np.abs(approx_fprime(point, objective, 1e-6)).max() < 1e-5
    assert np.abs(approx_fprime(point + 0.5, objective, 1e-6)).max() > 1e-2


def test_pairs_alone_are_a_logistic_regression_on_differences():
    data, decay = drawn(1), 0.05
    difference = data.higher - data.lower
    # scikit-learn minimises the sum of losses + |w|^2 / (2 C), here over both orders of every pair
    model = LogisticRegression(C=1 / (decay * 2 * len(data)), fit_intercept=False, tol=1e-10, max_iter=1000)
    model.fit(np.vstack([difference, -difference]), np.repeat([1, 0], len(data)))
    head = fit_linear(data, PAIRS, decay=decay)
    assert head.weights == pytest.approx(model.coef_[0], abs=1e-5)
    assert head.bias == 0


def test_signs_find_the_zero_that_the_order_cannot():
    data = drawn(2, n=20_000)
    head = fit_linear(data, OBJECTIVES["pairs-and-signs"](regularisation=0.0), decay=1e-6)
    assert head.weights == pytest.approx([1, -2, 0.5, 0], abs=0.06)
    assert head.bias == pytest.approx(0.3, abs=0.04)


def test_sparse_features_give_the_same_head():
    data = drawn(3)
    thin = PairFeatures(
        sparse.csr_matrix(data.higher), sparse.csr_matrix(data.lower), data.higher_sign, data.lower_sign
    )
    dense, same = fit_linear(data, SIGNED, decay=0.1), fit_linear(thin, SIGNED, decay=0.1)
    assert same.weights == pytest.approx(dense.weights, abs=1e-5)


def test_a_prompt_is_never_on_both_sides_and_every_pair_is_left_out_once(monkeypatch):
    data, groups = drawn(n=40), [f"prompt {i % 13}" for i in range(40)]
    seen = []
    monkeypatch.setattr(linear, "fit_linear", lambda part, *_, **__: seen.append(part) or LinearHead(np.zeros(4), 0.0))
    monkeypatch.setattr(linear, "mean_loss", lambda head, part, loss: seen.append(part) or 0.0)  # noqa: ARG005
    choose_decay(data, PAIRS, groups, grid=[1.0], folds=5, seed=0)
    name = {tuple(features): group for features, group in zip(data.higher, groups, strict=True)}
    inside, outside = ([[name[tuple(x)] for x in part.higher] for part in seen[side::2]] for side in (0, 1))
    assert len(inside) == 5 and all(inside) and all(outside)
    assert not any(set(one) & set(other) for one, other in zip(inside, outside, strict=True))
    assert sorted(name for part in outside for name in part) == sorted(groups)


def test_the_decay_is_large_where_there_is_nothing_to_learn_and_small_where_there_is():
    rng = np.random.default_rng(4)
    groups = [str(i // 2) for i in range(300)]
    noise = PairFeatures(*rng.normal(size=(2, 300, 20)), np.zeros(300), np.zeros(300))
    told = drawn(5, n=300)
    grid = [10.0, 0.1, 0.001]
    assert choose_decay(noise, PAIRS, groups, grid=grid, folds=5, seed=0)[0] == 10.0
    assert choose_decay(told, PAIRS, groups, grid=grid, folds=5, seed=0)[0] < 10.0


def test_what_is_fitted_and_what_its_zero_means():
    assert [objective_name("cost", signed=flag) for flag in (True, False)] == ["pairs-and-signs", "pairs"]
    assert objective_name("reward", signed=False) == "pairs"
    assert "zero of this cost is arbitrary" in meaning_of_zero("cost", "pairs")
    assert "arbitrary" not in meaning_of_zero("cost", "pairs-and-signs")
