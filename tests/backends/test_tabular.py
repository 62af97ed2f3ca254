import numpy as np
import pytest
import torch

from dualign.errors import NumericalError
from dualign.maths.exact import log_policy
from dualign.protocols import Policy
from dualign.records import Group
from dualign.worlds.solving import divergence
from dualign.worlds.tabular import TabularBackend
from small_worlds import objective, small_world


def fitted(seed: int, multiplier: float, *, beta: float, spread: float = 1.0, **settings: object) -> tuple:
    world = small_world(seed, beta=beta, spread=spread)
    backend = TabularBackend(world)
    asked = objective(multiplier, beta=beta, **settings)  # type: ignore[arg-type]
    policy = backend.fit(world.groups(), objective=asked, reference=backend.reference, start=None, seed=0, name="p")
    return world, backend, policy


@pytest.mark.parametrize("beta", [0.25, 1.0])
@pytest.mark.parametrize("multiplier", [0.0, 2.0, 16.0])
def test_soft_labels_reach_the_gibbs_policy_where_labels_saturate(beta: float, multiplier: float) -> None:
    for seed in range(3):
        world, _, policy = fitted(seed, multiplier, beta=beta, spread=3.0)
        problem = world.problem()
        assert divergence(problem, policy.state, log_policy(problem, np.array([multiplier]))) <= 1e-12
        assert policy.report.history[0]["converged"] == 1
        assert policy.report.history[0]["gradient"] <= 1e-12
        assert policy.report.slope == pytest.approx(1, abs=1e-6)


def test_label_logits_of_a_hundred_are_fitted_to_the_last_pair() -> None:
    world, _, policy = fitted(1, 30.0, beta=20.0, spread=3.0)
    np.testing.assert_allclose(policy.state, log_policy(world.problem(), np.array([30.0])), rtol=0, atol=1e-6)


def test_hard_labels_end_at_the_budget_and_say_so() -> None:
    _, _, policy = fitted(0, 1.0, beta=0.25, labels="hard")
    assert policy.report.history[0]["converged"] == 0
    assert policy.report.slope > 2
    assert np.all(np.isfinite(policy.state[:, :2]))


def test_ipo_has_the_known_optimum_on_one_pair() -> None:
    # Soft IPO on one pair: h = (2 p - 1) / (2 beta), the mean of its two targets.
    world = small_world(11, beta=0.5)
    backend = TabularBackend(world)
    group = next(g for g in world.groups() if len(g.responses) == 2)
    asked = objective(0.0, beta=0.5, loss="ipo")
    policy = backend.fit([group], objective=asked, reference=backend.reference, start=None, seed=0, name="p")
    after, before = (backend.log_probs(p, [group])[0] for p in (policy, backend.reference))
    h = (after - before)[0] - (after - before)[1]
    p = 1 / (1 + np.exp(group.reward[1] - group.reward[0]))
    assert h == pytest.approx((2 * p - 1) / (2 * 0.5), abs=1e-9)


def test_start_does_not_move_the_optimum_and_a_reference_does() -> None:
    world, backend, gibbs = fitted(3, 2.0, beta=0.5)
    problem = world.problem()
    settings = {"reference": backend.reference, "seed": 0, "name": "p"}
    far = Policy("far", log_policy(problem, np.array([40.0])))
    again = backend.fit(world.groups(), objective=objective(2.0, beta=0.5), start=far, **settings)
    assert divergence(problem, again.state, gibbs.state) <= 1e-12
    # From the policy of the reward, labels of -2 c lead to the same place: r - 2 c in two steps.
    reward = backend.fit(world.groups(), objective=objective(0.0, beta=0.5), start=None, **settings)
    zeroed = [Group(g.prompt, g.responses, 0 * g.reward, g.costs, g.weight) for g in world.groups()]
    second = backend.fit(zeroed, objective=objective(2.0, beta=0.5), start=None, **{**settings, "reference": reward})
    assert divergence(problem, second.state, gibbs.state) <= 1e-12


def test_bernoulli_draws_follow_the_seed() -> None:
    world = small_world(2, beta=1.0)
    backend = TabularBackend(world, budget=20)

    def state(seed: int) -> np.ndarray:
        asked = objective(1.0, beta=1.0, labels="bernoulli")
        return backend.fit(
            world.groups(), objective=asked, reference=backend.reference, start=None, seed=seed, name="p"
        ).state

    assert np.array_equal(state(1), state(1))
    assert not np.array_equal(state(1), state(2))


def test_prompts_without_a_group_keep_the_reference() -> None:
    world = small_world(4)
    backend = TabularBackend(world)
    policy = backend.fit(
        world.groups()[1:],
        objective=objective(1.0, beta=1.0),
        reference=backend.reference,
        start=None,
        seed=0,
        name="p",
    )
    np.testing.assert_allclose(np.exp(policy.state[0]), np.exp(world.problem().log_reference[0]), atol=1e-15)


def test_samples_have_the_policy_s_frequencies() -> None:
    world, backend, policy = fitted(5, 1.0, beta=1.0)
    prompts = [group.prompt for group in world.groups()]
    drawn = backend.sample(policy, prompts, 4000, seed=7)
    for row, responses in enumerate(drawn):
        for k, response in enumerate(world.prompts[row].responses):
            p = float(np.exp(policy.state[row, k]))
            count = sum(draw.text == response.text for draw in responses)
            assert abs(count - 4000 * p) <= 5 * np.sqrt(4000 * p * (1 - p)) + 1
    assert drawn[1] == backend.sample(policy, prompts[1:2], 4000, seed=7)[0]


def test_a_score_that_is_no_number_stops_the_fit() -> None:
    world = small_world(0)
    backend = TabularBackend(world)
    groups = world.groups()
    groups[0].reward[0] = np.nan
    with pytest.raises(NumericalError, match="not finite"):
        backend.fit(
            groups,
            objective=objective(0.0, beta=1.0),
            reference=backend.reference,
            start=None,
            seed=0,
            name="p",
        )


def test_the_fit_is_stationary_for_the_loss_as_torch_differentiates_it() -> None:
    world, backend, policy = fitted(6, 1.0, beta=0.5)
    for group, log_probs, base in zip(
        world.groups(),
        backend.log_probs(policy, world.groups()),
        backend.log_probs(backend.reference, world.groups()),
        strict=True,
    ):
        logits = torch.from_numpy(log_probs).requires_grad_()
        ratio = torch.log_softmax(logits, 0) - torch.from_numpy(base)
        i, j = torch.triu_indices(len(log_probs), len(log_probs), offset=1)
        score = torch.from_numpy(group.reward - group.costs[:, 0])
        u = 0.5 * (ratio[i] - ratio[j])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(u, torch.sigmoid(score[i] - score[j]))
        loss.backward()
        assert float(logits.grad.abs().max()) <= 1e-12
