"""Adversarial preference optimisation: the retrained reward is the minimum of its two terms, and the game is exact."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from dualign.job.policies import retrained_rewards
from dualign.maths.adversarial import Comparisons, adversarial_policy, fit_linear_reward, table_reward
from dualign.maths.exact import log_policy
from dualign.protocols import Adversary
from dualign.records import FloatArray, Group, Prompt, Response
from dualign.worlds.solving import SolveSettings, solve
from small_worlds import small_world

RNG = np.random.default_rng(7)
SCORES = RNG.normal(size=6)
PROBABILITIES = RNG.dirichlet(np.ones(6))


def two_terms(rewards: torch.Tensor, coefficient: float) -> torch.Tensor:
    """Return the loss as the source writes it, over ordered pairs, golden against itself counted."""
    scores, mass = torch.from_numpy(SCORES), torch.from_numpy(PROBABILITIES)
    wins = torch.sigmoid(scores[:, None] - scores[None, :])
    apart = ~torch.eye(6, dtype=torch.bool)
    rank = -(wins * torch.nn.functional.logsigmoid(rewards[:, None] - rewards[None, :]))[apart].sum() / 15
    game = -(mass * torch.nn.functional.logsigmoid(rewards[scores.argmax()] - rewards)).sum()
    return rank + coefficient * game


@pytest.mark.parametrize("coefficient", [0.0, 0.1, 3.0])
def test_the_retrained_reward_is_stationary(coefficient: float) -> None:
    rewards = torch.from_numpy(table_reward(SCORES, PROBABILITIES, coefficient=coefficient)).requires_grad_()
    loss = two_terms(rewards, coefficient)
    (gradient,) = torch.autograd.grad(loss, rewards)
    assert float(gradient.abs().max()) < 1e-10
    for _ in range(50):
        near = rewards.detach() + 0.1 * torch.from_numpy(RNG.normal(size=6))
        assert two_terms(near, coefficient) > loss


def test_without_the_game_it_is_bradley_terry_and_the_policy_that_of_c_dpo() -> None:
    np.testing.assert_allclose(table_reward(SCORES, PROBABILITIES, coefficient=0.0), SCORES, atol=1e-9)
    problem = small_world(5, beta=0.5).problem()
    found = adversarial_policy(problem, np.array([1.3]), coefficient=0.0, rounds=2)
    np.testing.assert_allclose(found, log_policy(problem, np.array([1.3])), atol=1e-8)


def test_the_game_widens_the_lead_of_the_golden_answer_most_over_likely_ones() -> None:
    plain, played = (table_reward(SCORES, PROBABILITIES, coefficient=value) for value in (0.0, 1.0))
    golden = int(SCORES.argmax())
    lead = (played[golden] - played) - (plain[golden] - plain)
    assert (np.delete(lead, golden) > 0).all()
    sure = np.full(6, 1e-9)
    sure[golden] = 1 - 5e-9
    np.testing.assert_allclose(table_reward(SCORES, sure, coefficient=1.0), SCORES, atol=1e-6)


def test_a_linear_head_is_the_minimum_that_a_general_optimiser_finds() -> None:
    pairs = Comparisons(RNG.normal(size=(40, 5)), RNG.uniform(size=40), RNG.uniform(size=40))

    def loss(theta: FloatArray) -> float:
        logits = pairs.differences @ theta
        return float(pairs.weights @ (np.logaddexp(0, logits) - pairs.labels * logits) + 0.05 * theta @ theta)

    other = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(fit_linear_reward(pairs, ridge=0.1), other.x, atol=1e-5)


def test_a_head_on_one_feature_an_answer_is_the_table() -> None:
    groups = [
        Group(Prompt(f"p{k}"), tuple(Response(str(j)) for j in range(4)), RNG.normal(size=4), RNG.normal(size=(4, 1)))
        for k in range(3)
    ]

    class OneHot:
        def states(self, groups: list[Group]) -> list[FloatArray]:
            return [np.eye(12)[4 * k : 4 * k + 4] for k in range(len(groups))]

    multipliers, uniform = np.array([0.7]), np.full(4, 0.25)
    adversary = Adversary(coefficient=0.5, answers=4, ridge=0.0)
    found = retrained_rewards(OneHot(), groups, groups, multipliers, adversary)
    for group, rewards in zip(groups, found, strict=True):
        scores = group.reward - group.costs @ multipliers
        expected = table_reward(scores, uniform, coefficient=0.5)
        np.testing.assert_allclose(rewards - rewards.mean(), expected - expected.mean(), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("coefficient", [0.1, 2.0])
def test_apo_reaches_its_target_on_random_worlds(seed: int, coefficient: float) -> None:
    settings = SolveSettings(method="apo", multipliers=np.array([1.2]), options={"coefficient": coefficient})
    solution = solve(small_world(seed, beta=0.5), settings)
    assert solution.figures["fit_distance"] <= 2e-6
