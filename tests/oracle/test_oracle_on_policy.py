"""Policy-gradient methods under limits: fixed points, multiplier steps, advantages, tests; and best-of-n."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dualign.maths.bounds import clustered_t
from dualign.maths.exact import expectations, log_policy, prompt_kl
from dualign.maths.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    generalised_advantages,
    leave_one_out_loss,
    token_rewards,
)
from dualign.maths.policy_gradient import (
    cost_moments,
    inflated_costs,
    inflation_factor,
    kl_bound,
    lagrangian_policy,
    log_best_of,
    multiplier_step,
)
from dualign.methods.options import Options
from dualign.worlds.solving import SolveSettings, solve
from small_worlds import small_world

PROBLEM = small_world(3, beta=0.5).problem()
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("multiplier", [0.0, 0.4, 1.7, 6.0])
def test_safe_rlhf_maximum_is_attained_at_beta_kappa_times_one_plus_lambda(seed: int, multiplier: float) -> None:
    problem, given, kl, rng = small_world(seed).problem(), np.array([multiplier]), 0.2, np.random.default_rng(seed)
    policy = lagrangian_policy(problem, given, kl=kl)
    np.testing.assert_allclose(policy, log_policy(replace(problem, beta=kl * (1 + multiplier)), given), atol=1e-12)
    # kappa E_x log E_ref exp((r - lambda c) / ((1 + lambda) kappa)), written out.
    tilted = np.exp((problem.reward - multiplier * problem.costs[..., 0]) / ((1 + multiplier) * kl))
    by_hand = kl * problem.prompt_weights @ np.log((np.exp(problem.log_reference) * tilted).sum(axis=1))

    def objective(log_probs: np.ndarray) -> float:
        found = expectations(problem, log_probs)
        return (found.reward - multiplier * float(found.costs[0])) / (1 + multiplier) - kl * found.kl

    assert objective(policy) == pytest.approx(by_hand, abs=1e-10)
    live = np.isfinite(policy)
    for scale in (1e-3, 0.1, 1.0):
        for _ in range(50):
            other = np.where(live, policy + scale * rng.normal(size=policy.shape), -np.inf)
            other -= np.logaddexp.reduce(other, axis=1, keepdims=True)
            assert objective(other) < by_hand


def test_log_space_step_is_the_multiplicative_update() -> None:
    multipliers, violation, rate = np.array([0.5, 2.0, 4.0]), np.array([1.0, -0.3, 3.0]), np.full(3, 0.1)
    largest = np.full(3, 5.0)
    found = multiplier_step(multipliers, violation, rate=rate, largest=largest)
    expected = np.minimum(multipliers * np.exp(rate * multipliers * violation), largest)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found[0] > 0.5 and found[1] < 2.0 and found[2] == pytest.approx(5.0)


def tokens() -> tuple[torch.Tensor, ...]:
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]], dtype=torch.float64)
    draws = torch.from_numpy(RNG.normal(size=(3, 2, 5)))
    return mask, *draws


def test_advantages_telescope_at_decay_one() -> None:
    mask, rewards, values, _ = tokens()
    rewards = rewards * mask
    advantages, returns = generalised_advantages(rewards, values, mask, decay=1.0)
    to_come = torch.flip(torch.cumsum(torch.flip(rewards, (1,)), 1), (1,))
    torch.testing.assert_close(advantages, (to_come - values) * mask, atol=1e-12, rtol=0)
    torch.testing.assert_close(returns * mask, to_come * mask, atol=1e-12, rtol=0)
    shorter, _ = generalised_advantages(rewards, values, mask, decay=0.0)
    following = torch.cat([values[:, 1:] * mask[:, 1:], torch.zeros(2, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(shorter, (rewards + following - values) * mask)


def test_the_score_stands_on_the_last_token_and_kl_has_both_signs() -> None:
    mask, ratio, _, _ = tokens()
    score = torch.tensor([3.0, -2.0], dtype=torch.float64)
    reward = token_rewards(score, ratio, mask, kl=0.1)
    cost = token_rewards(score, -ratio, mask, kl=0.1)
    total = (ratio * mask).sum(1)
    torch.testing.assert_close(reward.sum(1), score - 0.1 * total)
    torch.testing.assert_close(cost.sum(1), score + 0.1 * total)
    assert float(reward[0, 3]) == pytest.approx(3.0 - 0.1 * float(ratio[0, 3])) and float(reward[0, 4]) == 0
    assert float(token_rewards(100 * score, ratio, mask, kl=0.1).max()) == 50.0


def test_the_first_policy_loss_is_minus_the_mean_advantage_and_the_clip_holds() -> None:
    mask, old, advantages, _ = tokens()
    first = clipped_policy_loss(old, old, advantages, mask)
    torch.testing.assert_close(first, -(advantages * mask).sum(1) / mask.sum(1))
    live = (old + 1.0).requires_grad_()
    positive = advantages.abs()
    torch.autograd.backward(clipped_policy_loss(live, old, positive, mask).sum())
    assert live.grad is not None and float(live.grad.abs().max()) == 0
    values = clipped_value_loss(old + 9, old, old, mask, clip=5.0)
    torch.testing.assert_close(values, torch.full((2,), 40.5, dtype=torch.float64))


def test_both_leave_one_out_forms_are_one() -> None:
    log_probs, returns = torch.from_numpy(RNG.normal(size=(2, 7, 4)))
    # as HC-RLHF's code writes it
    centred = returns - returns.mean(dim=1, keepdim=True)
    expected = -(centred * log_probs).sum(dim=1) / (returns.shape[1] - 1)
    torch.testing.assert_close(leave_one_out_loss(log_probs, returns), expected, atol=1e-12, rtol=0)


def test_inflated_cost_is_the_influence_function_of_mean_plus_deviations() -> None:
    width, live = 0.7, np.isfinite(PROBLEM.log_reference)
    policy = log_policy(PROBLEM, np.array([0.4]))
    mean, deviation = cost_moments(PROBLEM, policy)
    inflated = inflated_costs(PROBLEM.costs, mean, deviation, inflation=width)[..., 0]
    for _ in range(10):
        direction = np.where(live, RNG.normal(size=policy.shape), 0.0)

        def bound(step: float, direction: np.ndarray = direction) -> float:
            moved = policy + step * direction
            moved = moved - np.logaddexp.reduce(moved, axis=1, keepdims=True)
            values = cost_moments(PROBLEM, moved)
            return float(values[0][0] + width * values[1][0])

        slope = (bound(1e-5) - bound(-1e-5)) / 2e-5
        probs = np.exp(policy)
        score = direction - (probs * direction).sum(axis=1, keepdims=True)
        expected = float(PROBLEM.prompt_weights @ (probs * score * np.where(live, inflated, 0)).sum(axis=1))
        assert slope == pytest.approx(expected, abs=1e-5)


def test_inflation_by_hand_and_its_faults() -> None:
    from scipy.stats import t

    expected = t.ppf(0.9, 255) / 16 + t.ppf(0.9, 999) / np.sqrt(1000)
    assert inflation_factor(0.1, candidates=256, safety=1000) == pytest.approx(expected)
    with pytest.raises(ValueError, match="two costs"):
        inflation_factor(0.1, candidates=1, safety=10)


def test_the_safety_test_passes_at_its_level() -> None:
    # Within 0.01, which is 4.7 standard errors of a rate of 0.1 and 6.5 of one of 0.05.
    rng, repetitions = np.random.default_rng(2), 20_000
    costs = rng.normal(size=(repetitions, 50, 1)) + rng.normal(size=(repetitions, 50, 4))
    passed = np.mean(clustered_t(costs.mean(axis=2), delta=0.1) <= 0.0)
    bounded = np.mean(clustered_t(costs.mean(axis=2), delta=0.05) >= 0)
    naive = np.mean(clustered_t(costs.reshape(repetitions, -1), delta=0.05) >= 0)
    assert passed == pytest.approx(0.1, abs=0.01)
    assert bounded == pytest.approx(0.95, abs=0.01)
    assert naive < 0.9


CASES: list[tuple[str, Options]] = [
    ("ppo-lag", {}), ("ppo-lag", {"kl_share": 1.0}), ("reinforce-lag", {"delta": 0.0}), ("reinforce-lag", {}),
    ("reward-shaping", {}), ("p-sacpo", {}), ("best-of-n", {"n": 4.0}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("constraints", [1, 2])
def test_a_given_multiplier_leads_to_its_own_closed_form(name: str, options: Options, constraints: int) -> None:
    for seed in range(2):
        world = small_world(seed, constraints=constraints, beta=0.5)
        settings = SolveSettings(method=name, options=options, multipliers=np.array([0.8, 0.3])[:constraints])
        assert solve(world, settings).figures["fit_distance"] <= 2e-6


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ppo-lag", {}),
        ("reinforce-lag", {}),
        ("reinforce-lag", {"delta": 0.0}),
        ("reward-shaping", {}),
        ("p-sacpo", {}),
    ],
)
def test_limits_are_met(name: str, options: Options) -> None:
    for seed in range(3):
        assert solve(small_world(seed, beta=0.5), SolveSettings(method=name, options=options)).figures["limits_met"]


def test_reward_shaping_keeps_beta_where_safe_rlhf_raises_it() -> None:
    world, given = small_world(3, beta=0.5), np.array([1.7])
    shaped, lagrangian = (
        solve(world, SolveSettings(method=name, options=options, multipliers=given)).figures["parameters"]
        for name, options in (("reward-shaping", {}), ("ppo-lag", {"kl_share": 1.0}))
    )
    assert (shaped["lambda"], shaped["kl"]) == (1.7, 0.5)
    assert (lagrangian["lambda"], lagrangian["kl"]) == (1.7, 0.5)
    same = solve(world, SolveSettings(method="fixed", multipliers=given)).figures
    kls = [
        solve(world, SolveSettings(method=name, options=options, multipliers=given)).figures["kl"]
        for name, options in (("reward-shaping", {}), ("ppo-lag", {"kl_share": 1.0}))
    ]
    assert kls[0] == pytest.approx(same["kl"], abs=1e-6) and kls[1] < 0.8 * kls[0]


def test_best_of_n_by_draws() -> None:
    log_reference = np.log(np.array([[0.5, 0.3, 0.2]]))
    scores = np.array([[1.0, 2.0, 2.0]])
    found = np.exp(log_best_of(log_reference, scores, 3))[0]
    rng = np.random.default_rng(0)
    drawn = rng.choice(3, size=(200_000, 3), p=[0.5, 0.3, 0.2])
    kept = drawn[np.arange(len(drawn)), scores[0][drawn].argmax(axis=1)]
    np.testing.assert_allclose(found, np.bincount(kept) / len(drawn), atol=4e-3)
    assert found[0] == pytest.approx(0.125) and found.sum() == pytest.approx(1)
    np.testing.assert_allclose(log_best_of(log_reference, scores, 1), log_reference, atol=1e-12)


def test_best_of_n_stays_below_its_bound_of_kl() -> None:
    for n in (2, 16):
        table = log_best_of(PROBLEM.log_reference, PROBLEM.reward, n)
        assert prompt_kl(table, PROBLEM.log_reference).max() <= kl_bound(n) + 1e-9
        assert expectations(PROBLEM, table).reward > expectations(PROBLEM, PROBLEM.log_reference).reward
