"""Losses of reward and cost models: values by hand, symmetries, derivatives, and where the minimum lies."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit

from dualign.maths.losses import cost_model_loss, reward_model_loss


def tensors(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def drawn(seed, n=7):
    rng = np.random.default_rng(seed)
    scores = [torch.from_numpy(rng.normal(size=n)) for _ in range(2)]
    signs = [torch.from_numpy(rng.choice([-1.0, 1.0], size=n)) for _ in range(2)]
    return *scores, *signs


def test_equal_rewards_cost_log_two_and_the_penalty():
    reward, same = tensors([0.0, 1.5, -3.0], [0.0, 1.5, -3.0])
    loss = reward_model_loss(reward, same, regularisation=0.1)
    assert loss.tolist() == pytest.approx([math.log(2), math.log(2) + 0.225, math.log(2) + 0.9])


def test_a_reward_difference_of_log_three_is_a_probability_of_three_quarters():
    higher, lower = tensors([math.log(3)], [0.0])
    assert reward_model_loss(higher, lower, regularisation=0).item() == pytest.approx(-math.log(0.75))


def test_a_constant_moves_the_penalty_alone():
    higher, lower, *_ = drawn(0)
    plain = [reward_model_loss(higher + shift, lower + shift, regularisation=0) for shift in (0, 5)]
    assert torch.allclose(*plain)
    held = [reward_model_loss(higher + shift, lower + shift, regularisation=0.01) for shift in (0, 5)]
    # 0.01 * ((a + 5)^2 - a^2 + (b + 5)^2 - b^2) / 2 = 0.05 * (a + b) + 0.25
    assert torch.allclose(held[1] - held[0], 0.05 * (higher + lower) + 0.25)


def test_a_cost_of_zero_is_three_log_two():
    zero = torch.zeros(4, dtype=torch.float64)
    *_, higher_sign, lower_sign = drawn(1, n=4)
    loss = cost_model_loss(zero, zero, higher_sign, lower_sign, regularisation=0.3)
    assert loss.tolist() == pytest.approx([3 * math.log(2)] * 4, rel=0, abs=1e-12)


def test_the_cost_loss_by_hand():
    # an unsafe answer of cost 2 against a safe one of cost -1: sigmoid of 3, 1 and 2, squares (4 + 1) / 2
    loss = cost_model_loss(*tensors([2.0], [-1.0], [1.0], [-1.0]), regularisation=0.1)
    assert loss.item() == pytest.approx(sum(math.log1p(math.exp(-x)) for x in (3, 1, 2)) + 0.25)


def test_exchanged_roles_signs_and_costs_leave_the_cost_loss_as_it_is():
    less_safe, safer, less_safe_sign, safer_sign = drawn(2)
    plain = cost_model_loss(less_safe, safer, less_safe_sign, safer_sign, regularisation=0.2)
    mirrored = cost_model_loss(-safer, -less_safe, -safer_sign, -less_safe_sign, regularisation=0.2)
    assert torch.allclose(plain, mirrored)


@pytest.mark.parametrize("regularisation", [0.0, 0.7])
def test_derivatives_are_those_of_finite_differences(regularisation):
    less_safe, safer, *signs = drawn(3)
    sides = [side.requires_grad_() for side in (less_safe, safer)]
    assert torch.autograd.gradcheck(lambda a, b: reward_model_loss(a, b, regularisation=regularisation), sides)
    assert torch.autograd.gradcheck(lambda a, b: cost_model_loss(a, b, *signs, regularisation=regularisation), sides)


def expected_loss(costs, order, flags):
    """Return loss and gradient of two answers, averaged over labels: P(first less safe), P(each unsafe)."""
    first, second = leaves = [side.requires_grad_() for side in tensors([costs[0]], [costs[1]])]
    total = torch.zeros((), dtype=torch.float64)
    for first_sign in (1.0, -1.0):
        for second_sign in (1.0, -1.0):
            signs = tensors([first_sign], [second_sign])
            weight = math.prod(f if s > 0 else 1 - f for f, s in zip(flags, (first_sign, second_sign), strict=True))
            ahead = cost_model_loss(first, second, *signs, regularisation=0).sum()
            behind = cost_model_loss(second, first, *reversed(signs), regularisation=0).sum()
            total = total + weight * (order * ahead + (1 - order) * behind)
    gradient = torch.cat(torch.autograd.grad(total, leaves))
    return total.item(), gradient.numpy()


def minimiser(order, flags):
    return minimize(expected_loss, np.zeros(2), args=(order, flags), jac=True, method="BFGS", options={"gtol": 1e-9}).x


def test_labels_drawn_from_one_cost_are_fitted_by_that_cost():
    assert minimiser(expit(-3.0), expit(np.array([-1.0, 2.0]))) == pytest.approx([-1, 2], rel=0, abs=1e-6)
    assert minimiser(expit(1.2), expit(np.array([0.7, -0.5]))) == pytest.approx([0.7, -0.5], rel=0, abs=1e-6)


def test_an_order_that_is_certain_stretches_the_cost():
    # so that sigmoid(cost) overstates P(unsafe): calibrate before reading it as one
    assert minimiser(0.0, expit(np.array([-1.0, 2.0]))) == pytest.approx([-1.16, 2.32], abs=0.005)
