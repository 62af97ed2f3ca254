"""Equalities of C-DPO in exact worlds: 4 prompts x 2 to 6 responses, the real losses, fits to machine precision."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dualign.maths.exact import FloatArray, dual_value, log_policy
from dualign.maths.losses import bernoulli, dpo, soft
from dualign.worlds.solving import SolveSettings, curvature_bound, divergence, solve
from dualign.worlds.tabular import TabularBackend
from small_worlds import objective, small_world

BETA = 0.25


def policy_of(seed: int, *, budget: int = 300, pairs: float | None = None, **settings: object) -> tuple:
    world = small_world(seed, constraints=2, beta=BETA)
    backend = TabularBackend(world, budget=budget)
    groups = world.groups()
    if pairs is not None:
        groups = [replace(g, weight=g.weight * pairs ** (k - 1)) for k, g in enumerate(groups)]
    asked = objective(**settings)  # type: ignore[arg-type]
    fit = backend.fit(groups, objective=asked, reference=backend.reference, start=None, seed=0, name="p")
    return world.problem(), fit


def variation(first: FloatArray, second: FloatArray) -> float:
    return float(np.abs(np.exp(first) - np.exp(second)).sum(axis=1).max() / 2)


@pytest.mark.parametrize("pairs", [None, 5.0])
def test_row_9_soft_labels_fit_the_gibbs_policy_whatever_the_weights(pairs: float | None) -> None:
    for seed in range(5):
        multipliers = np.array([0.7, 1.3])
        problem, policy = policy_of(seed, pairs=pairs, multipliers=multipliers, beta=BETA)
        assert variation(policy.state, log_policy(problem, multipliers)) <= 1e-6


def test_row_9_nor_does_the_weight_of_a_pair_within_its_group_move_the_fit() -> None:
    # Both orders of a pair share its weight: under its soft label each pair is at its least loss at the same policy.
    def uneven(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return weights * torch.logspace(-1, 1, len(weights), dtype=weights.dtype)

    multipliers = np.array([0.7, 1.3])
    for seed in range(5):
        world = small_world(seed, constraints=2, beta=BETA)
        backend = TabularBackend(world)
        plain = objective(multipliers, beta=BETA)
        even, weighed = (
            backend.fit(world.groups(), objective=asked, reference=backend.reference, start=None, seed=0, name="p")
            for asked in (plain, replace(plain, weigh=uneven))
        )
        assert abs(weighed.report.loss - even.report.loss) > 1e-3  # the weights did reach the fit
        assert variation(weighed.state, log_policy(world.problem(), multipliers)) <= 1e-6


@pytest.mark.parametrize("weight", [1e-2, 1.0, 1e2])
def test_row_9_the_loss_of_a_pair_is_least_at_its_logit(weight: float) -> None:
    # Orders (i, j) and (j, i) with labels p and 1 - p: the slope is 2 weight beta (sigmoid(beta h) - p).
    probability = torch.tensor([0.02, 0.3, 0.5, 0.9], dtype=torch.float64)
    for shift in (0.0, 1.0):
        h = (torch.logit(probability) / BETA + shift).requires_grad_()
        nothing = torch.zeros_like(h)
        won, lost = dpo(h, nothing, beta=BETA), dpo(nothing, h, beta=BETA)
        loss = 2 * weight * (probability * won + (1 - probability) * lost)
        (slope,) = torch.autograd.grad(loss.sum(), h)
        expected = 2 * weight * BETA * (torch.sigmoid(torch.logit(probability) + BETA * shift) - probability)
        torch.testing.assert_close(slope, expected, atol=1e-12 * weight, rtol=0)


@pytest.mark.parametrize("tau", [0.5, 4.0])
def test_row_10_label_temperature_multiplies_beta(tau: float) -> None:
    multipliers = np.array([0.7, 1.3])
    problem, same = policy_of(0, multipliers=multipliers, beta=BETA / tau, temperature=tau)
    assert variation(same.state, log_policy(problem, multipliers)) <= 1e-6
    problem, other = policy_of(0, multipliers=multipliers, beta=BETA, temperature=tau)
    assert variation(other.state, log_policy(replace(problem, beta=tau * BETA), multipliers)) <= 1e-6


def test_row_11_drawn_labels_are_soft_labels_in_the_mean() -> None:
    logits = torch.tensor([-2.0, -0.3, 0.0, 1.0, 4.0], dtype=torch.float64)
    ratios = torch.tensor([0.5, -1.0, 2.0, 0.1, -0.4], dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(0)

    def gradient(probability: torch.Tensor) -> torch.Tensor:
        nothing = torch.zeros_like(ratios)
        losses = probability * dpo(ratios, nothing, beta=BETA) + (1 - probability) * dpo(nothing, ratios, beta=BETA)
        return torch.autograd.grad(losses.sum(), ratios)[0]

    draws = torch.stack([bernoulli(logits, generator) for _ in range(4000)])
    gradients = torch.stack([gradient(draw) for draw in draws])
    for sample, expected in (
        (draws, soft(logits, generator)),
        (gradients, gradient(soft(logits, generator))),
    ):
        error = sample.std(dim=0) / 4000**0.5
        assert bool((error > 0).all())
        assert bool(((sample.mean(dim=0) - expected).abs() <= 5 * error).all())


def test_row_12_hard_labels_run_away_from_the_gibbs_policy() -> None:
    multipliers = np.array([0.7, 1.3])
    fits = [policy_of(0, budget=n, multipliers=multipliers, beta=BETA, labels="hard") for n in (5, 20, 80, 200)]
    losses = [policy.report.loss for _, policy in fits]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 1e-12
    problem, last = fits[-1]
    assert variation(last.state, log_policy(problem, multipliers)) > 0.05


def test_row_13_multiplier_0_is_dpo_on_the_reward_and_a_huge_one_ranks_by_cost() -> None:
    world = small_world(4, beta=BETA)
    searched = solve(world, SolveSettings(multipliers=np.zeros(1)))
    plain = solve(world, SolveSettings(method="dpo"))
    assert np.array_equal(searched.log_probs, plain.log_probs)
    huge = solve(world, SolveSettings(multipliers=np.array([1e3]), labels="hard"))
    for prompt, row in zip(world.prompts, huge.log_probs, strict=True):
        cheapest = int(np.argmin([response.costs[0] for response in prompt.responses]))
        assert int(np.argmax(row)) == cheapest


@pytest.mark.parametrize(("constraints", "seed"), [(1, 1), pytest.param(1, 2, marks=pytest.mark.slow), (2, 3)])
def test_row_6_gradient_steps_up_to_one_over_l_never_raise_the_dual_value(constraints: int, seed: int) -> None:
    world = small_world(seed, constraints=constraints, beta=0.5)
    problem = world.problem()
    figures = solve(world, SolveSettings(dual="gradient")).figures
    path = [np.array(list(row["multipliers"].values())) for row in figures["iterates"]]
    values = [dual_value(problem, point) for point in path[1:]]
    assert len(values) > 3
    assert max(np.diff(values)) <= 1e-12
    assert curvature_bound(problem) > 0
    assert divergence(problem, log_policy(problem, path[-1]), log_policy(problem, path[-1])) == 0
