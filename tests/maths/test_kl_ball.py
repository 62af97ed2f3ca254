"""The worst mean loss of a Kullback-Leibler ball, against a general solver and by its gradient."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from dualign.maths.adversarial import (
    clamped_weights,
    divergence,
    exponential_weights,
    log_mean_exp,
    solve_tau,
)
from dualign.records import FloatArray

RNG = np.random.default_rng(3)
LOSSES, WEIGHTS = RNG.gamma(2.0, size=40), RNG.dirichlet(np.ones(40))


def test_gradient_of_the_tilted_mean_is_that_of_the_weighted_losses() -> None:
    for tau in (0.05, 1.0, -0.7):
        values = torch.tensor(LOSSES, requires_grad=True)
        tilted = tau * torch.log((torch.tensor(WEIGHTS) * torch.exp(values / tau)).sum())
        (found,) = torch.autograd.grad(tilted, values)
        np.testing.assert_allclose(exponential_weights(LOSSES, WEIGHTS, tau=tau), found.numpy(), atol=1e-12)
        assert log_mean_exp(LOSSES, WEIGHTS, tau=tau) == pytest.approx(float(tilted.detach()), rel=1e-12)


def test_weights_keep_order_and_sum_and_do_not_see_a_shift() -> None:
    made = exponential_weights(LOSSES, WEIGHTS, tau=0.3)
    assert made.sum() == pytest.approx(WEIGHTS.sum())
    assert np.all(np.diff((made / WEIGHTS)[np.argsort(LOSSES)]) >= 0)
    np.testing.assert_allclose(exponential_weights(LOSSES + 50, WEIGHTS, tau=0.3), made, rtol=1e-10)
    np.testing.assert_allclose(exponential_weights(LOSSES, WEIGHTS, tau=1e9), WEIGHTS, rtol=1e-6)
    found = [divergence(LOSSES, WEIGHTS, tau=tau) for tau in (10, 1, 0.3, 0.1, 0.03)]
    assert found == sorted(found) and found[0] > 0


def test_clamped_weights_by_hand() -> None:
    uniform = np.full(2, 0.5)
    made = clamped_weights(np.array([0.0, 2.0]), uniform, tau=1.0)
    np.testing.assert_allclose(made, [0.5 * np.exp(-1), 0.5 * np.exp(1)])
    assert made.sum() >= 1  # Jensen
    assert clamped_weights(np.array([0.0, 2.0]), uniform, tau=0.1)[1] == pytest.approx(5.0)


def test_clamped_weights_are_the_exponential_ones_once_scaled_where_no_clamp_acts() -> None:
    for tau in (0.5, 1.0, 5.0):
        made = clamped_weights(LOSSES, WEIGHTS, tau=tau, largest=np.inf)
        softmax = WEIGHTS * np.exp(LOSSES / tau) / (WEIGHTS @ np.exp(LOSSES / tau))
        np.testing.assert_allclose(made / made.sum(), softmax, rtol=0, atol=1e-12)
        np.testing.assert_allclose(exponential_weights(LOSSES, WEIGHTS, tau=tau), softmax, rtol=0, atol=1e-12)
    calm = 0.1 * LOSSES  # far from exp = 10
    made = clamped_weights(calm, WEIGHTS, tau=1.0)
    softmax = WEIGHTS * np.exp(calm) / (WEIGHTS @ np.exp(calm))
    np.testing.assert_allclose(made / made.sum(), softmax, rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [0.01, 0.3, 1.0, 30.0])
def test_the_mean_loss_lies_between_dr_dpo_and_kldpo(width: float) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        losses, weights = rng.gamma(2.0, size=30), rng.dirichlet(np.ones(30))
        best, worst = (log_mean_exp(losses, weights, tau=tau) for tau in (-width, width))
        assert losses.min() <= best < weights @ losses < worst <= losses.max()


def dual_value(losses: FloatArray, weights: FloatArray, *, tau: float, rho: float) -> float:
    """Return ``tau rho + tau log E[exp(losses / tau)]``, at least the worst mean loss of the ball of radius ``rho``."""
    return tau * rho + log_mean_exp(losses, weights, tau=tau)


@pytest.mark.parametrize("rho", [1e-4, 0.05, 0.5, 2.0])
def test_strong_duality(rho: float) -> None:
    tau = solve_tau(LOSSES, WEIGHTS, rho=rho)
    worst = exponential_weights(LOSSES, WEIGHTS, tau=tau) / WEIGHTS.sum()
    assert divergence(LOSSES, WEIGHTS, tau=tau) == pytest.approx(rho, abs=1e-9)
    value = float(worst @ LOSSES)
    assert value == pytest.approx(dual_value(LOSSES, WEIGHTS, tau=tau, rho=rho), abs=1e-9)
    least = minimize_scalar(
        lambda log_tau: dual_value(LOSSES, WEIGHTS, tau=float(np.exp(log_tau)), rho=rho),
        bounds=(np.log(tau) - 3, np.log(tau) + 3), method="bounded", options={"xatol": 1e-10},
    )  # fmt: skip
    assert value == pytest.approx(float(least.fun), abs=1e-8)


def test_no_member_of_the_ball_is_worse() -> None:
    rho = 0.2
    tau = solve_tau(LOSSES, WEIGHTS, rho=rho)
    value = dual_value(LOSSES, WEIGHTS, tau=tau, rho=rho)
    rng, inside = np.random.default_rng(0), 0
    for _ in range(3000):
        other = WEIGHTS * np.exp(rng.normal(scale=rng.uniform(0, 1), size=40) + rng.uniform(0, 1) * LOSSES)
        other /= other.sum()
        if float(other @ np.log(other / WEIGHTS)) <= rho:
            inside += 1
            assert float(other @ LOSSES) <= value + 1e-12
    assert inside > 200


def test_the_ends() -> None:
    assert solve_tau(LOSSES, WEIGHTS, rho=0.0) == np.inf
    assert solve_tau(np.ones(5), np.full(5, 0.2), rho=1.0) == np.inf
    assert solve_tau(np.array([0.0, 1.0, 1.0]), np.full(3, 1 / 3), rho=-np.log(2 / 3)) == 0


def test_losses_that_rounding_tells_apart_end_the_search() -> None:
    rng = np.random.default_rng(1)
    for offset in (0.0, 1.0, 1e6):
        for _ in range(20):
            losses = offset + 1e-15 * rng.integers(0, 5, size=6)
            assert solve_tau(losses, np.full(6, 1 / 6), rho=1.5) >= 0
    last_digits = 0.69 + np.spacing(0.69) * rng.integers(0, 3, size=(200, 6))
    for losses in last_digits:
        assert solve_tau(losses, np.full(6, 1 / 6), rho=0.3) == float("inf")


def test_a_pair_of_no_weight_counts_for_nothing() -> None:
    losses, weights = np.append(LOSSES, 1e6), np.append(WEIGHTS, 0.0)
    assert exponential_weights(losses, weights, tau=0.1)[-1] == 0
    assert solve_tau(losses, weights, rho=0.3) == pytest.approx(solve_tau(LOSSES, WEIGHTS, rho=0.3))
