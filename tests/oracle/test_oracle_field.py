"""Equalities between the methods of the field, on small worlds whose optimum is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dualign.maths.dual import fixed
from dualign.maths.exact import FiniteProblem, log_policy
from dualign.maths.losses import bfpo_target, dpo, modpo
from dualign.methods.options import Options, Settings
from dualign.methods.table import METHODS
from dualign.protocols import Problem
from dualign.records import Evaluation
from dualign.worlds.file import World
from dualign.worlds.solving import SolveSettings, solve
from dualign.worlds.tabular import TabularBackend
from small_worlds import small_world

GIBBS: list[tuple[str, Options]] = [
    ("c-dpo", {}), ("pd-dpo", {}), ("sacpo", {}), ("sacpo", {"order": "safe-first"}), ("modpo", {}),
    ("modpo", {"margin": "implicit"}), ("mocan", {}), ("pecan", {}), ("caid", {}), ("repo-dpo", {}),
    ("pecan", {"label_scale": "released", "beta": 1.5}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), GIBBS)
@pytest.mark.parametrize("constraints", [1, 2])
def test_a_given_multiplier_leads_to_the_closed_form(name: str, options: Options, constraints: int) -> None:
    for seed, temperature in ((0, 1.0), (1, 2.5)):
        world = small_world(seed, constraints=constraints, beta=0.5)
        multipliers = np.array([0.8, 0.3])[:constraints]
        found = solve(
            world, SolveSettings(method=name, options=options, multipliers=multipliers, temperature=temperature)
        )
        assert found.figures["fit_distance"] <= 2e-6
        if name != "repo-dpo" and not options.get("label_scale"):
            exact = log_policy(world.problem(), multipliers)
            np.testing.assert_allclose(np.exp(found.log_probs), np.exp(exact), atol=1e-6)


@pytest.mark.parametrize("name", ["pd-dpo", "sacpo", "modpo", "mocan", "pecan", "caid"])
@pytest.mark.parametrize("constraints", [1, 2])
def test_without_one_the_limits_are_met_at_the_optimum(name: str, constraints: int) -> None:
    for seed in range(3):
        figures = solve(small_world(seed, constraints=constraints, beta=0.5), SolveSettings(method=name)).figures
        assert figures["limits_met"]
        assert figures["gap"] <= 1e-4


def test_one_shot_methods_fit_once() -> None:
    for name in ("mocan", "pecan"):
        assert solve(small_world(3, beta=0.5), SolveSettings(method=name)).figures["rounds"] == 1


def test_no_multiplier_leaves_the_second_step_out() -> None:
    world = small_world(4, beta=0.5)
    helpful = solve(world, SolveSettings(method="dpo")).log_probs
    for name in ("pd-dpo", "sacpo", "modpo"):
        found = solve(world, SolveSettings(method=name, multipliers=np.zeros(1)))
        np.testing.assert_allclose(np.exp(found.log_probs), np.exp(helpful), atol=1e-6)


def test_the_two_forms_of_pd_dpo() -> None:
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 50)))
    own, helpful, own_costly, helpful_costly = values
    # the implied cost of an answer is beta log pi_r / pi_ref - beta log pi / pi_ref
    implied = 0.3 * (helpful_costly - own_costly) - 0.3 * (helpful - own)
    for multiplier in (0.05, 1.0, 8.0):
        found = -torch.nn.functional.logsigmoid(implied / multiplier)
        moved = dpo(own - helpful, own_costly - helpful_costly, beta=0.3 / multiplier)
        torch.testing.assert_close(found, moved, atol=1e-12, rtol=0)


def test_modpo_by_hand() -> None:
    first, second = torch.tensor([0.7]), torch.tensor([-0.4])
    score, other = torch.tensor([1.5]), torch.tensor([0.5])
    plain = modpo((first, score), (second, other), beta=0.3, weights=(1.0, 0.0))
    torch.testing.assert_close(plain, dpo(first, second, beta=0.3))
    found = modpo((first, score), (second, other), beta=0.3, weights=(0.5, 0.25))
    assert float(found) == pytest.approx(float(np.log1p(np.exp(-(0.3 * 1.1 - 0.25 * 1.0) / 0.5))))
    scaled = modpo((first, score), (second, other), beta=0.9, weights=(1.5, 0.75))
    torch.testing.assert_close(found, scaled)


@pytest.mark.parametrize("margin", [0.0, 10.0])
@pytest.mark.parametrize("seed", [3, 5, 11])
def test_safedpo_forbids_what_is_unsafe_and_keeps_the_rest(margin: float, seed: int) -> None:
    # A certain label is one of logit 40, so the mass is not 0: exp(-(40 + margin) / beta), times e to a few rewards.
    world = small_world(seed, beta=0.5)
    found = solve(world, SolveSettings(method="safedpo", options={"safety_margin": margin})).log_probs
    problem = world.problem()
    helpful = log_policy(problem, np.zeros(1))
    for row in range(len(found)):
        live = np.isfinite(problem.log_reference[row])
        unsafe = live & (problem.costs[row, :, 0] > 0)
        safe = live & ~unsafe
        if not safe.any():
            continue
        assert np.exp(found[row, unsafe]).sum() <= 1e-8
        conditionals = [np.exp(table[row, safe]) / np.exp(table[row, safe]).sum() for table in (found, helpful)]
        np.testing.assert_allclose(*conditionals, atol=1e-12)


def test_the_flag_of_safedpo_is_a_raw_cost() -> None:
    world = small_world(3, beta=0.5)
    costs = world.problem().costs[..., 0]
    found = solve(world, SolveSettings(method="safedpo", options={"unsafe_above": 0.5})).log_probs
    helpful = log_policy(world.problem(), np.zeros(1))
    live = np.isfinite(world.problem().log_reference)
    for row in range(len(found)):
        unsafe = live[row] & (costs[row] > 0.5)
        if (live[row] & ~unsafe).any():
            assert np.exp(found[row, unsafe]).sum() <= 1e-8
        if not unsafe.any():
            np.testing.assert_allclose(np.exp(found[row]), np.exp(helpful[row]), atol=1e-7)


def test_bfpo_targets_and_its_fit_on_one_pair() -> None:
    flags = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    torch.testing.assert_close(bfpo_target(*flags), torch.tensor([0.5, 1.0, -0.5, -1.0]))
    raw = small_world(5, beta=0.5)
    prompts = []
    for prompt in raw.prompts:
        share = sum(response.reference for response in prompt.responses[:2])
        pair = tuple(replace(r, reference=r.reference / share) for r in prompt.responses[:2])
        prompts.append(replace(prompt, responses=pair))
    world = replace(raw, prompts=tuple(prompts))
    moved = fitted(world, "bfpo", labels="hard")
    for row, group in enumerate(world.groups()):
        winner = int(np.argmax(group.reward))
        safe = torch.from_numpy((group.costs[:, 0] <= 0).astype(float))
        target = float(bfpo_target(safe[winner], safe[1 - winner]))
        assert moved[row, winner] - moved[row, 1 - winner] == pytest.approx(target / 0.5, abs=1e-6)


def fitted(world: World, name: str, labels: str) -> np.ndarray:
    """Return the log-ratios of the method's one policy, fitted on raw scores."""
    backend = TabularBackend(world)

    def unread(policy: object) -> Evaluation:
        return Evaluation(0.0, 0.0, np.zeros(1), np.zeros(1), np.zeros(1), 0.0, 0.0, 1)

    problem = Problem(backend, world.groups(), np.zeros(1), backend.reference, unread, 0.5, 0)
    run = METHODS[name].run(problem, Settings(fixed(np.zeros(1)), np.zeros(1), labels=labels))
    return backend.table(next(run).policy) - backend.table(backend.reference)


def test_repo_prices_the_positive_part() -> None:
    world, multipliers = small_world(6, beta=0.5), np.array([1.3])
    found = solve(world, SolveSettings(method="repo-dpo", multipliers=multipliers)).log_probs
    problem: FiniteProblem = world.problem()
    rectified = replace(problem, costs=np.maximum(problem.costs, 0))
    np.testing.assert_allclose(np.exp(found), np.exp(log_policy(rectified, multipliers)), atol=1e-6)


@pytest.mark.parametrize("coefficient", [0.3, 1.5])
def test_released_labels_of_pecan_multiply_the_two_betas(coefficient: float) -> None:
    for seed in range(3):
        world, multipliers = small_world(seed, beta=0.5), np.array([0.8])
        options: Options = {"label_scale": "released", "beta": coefficient}
        found = solve(world, SolveSettings(method="pecan", options=options, multipliers=multipliers)).log_probs
        sharper = log_policy(replace(world.problem(), beta=0.5 * coefficient), multipliers)
        plain = log_policy(world.problem(), multipliers)
        distances = [np.abs(np.exp(found) - np.exp(table)).sum(axis=1).max() / 2 for table in (sharper, plain)]
        assert distances[0] <= 1e-4 < distances[1]


def test_mean_log_ratio_of_the_safe_policy_is_its_cost_over_beta() -> None:
    # E_pi[s] + KL(ref || safe) = (E_ref[c] - E_pi[c]) / beta, for the policy `safe` fitted on the cost alone.
    problem = small_world(7, beta=0.5).problem()
    safe = log_policy(replace(problem, reward=np.zeros_like(problem.reward)), np.ones(1))
    live = np.isfinite(problem.log_reference)
    scores = np.where(live, safe - np.where(live, problem.log_reference, 0.0), 0.0)
    reference, policy = np.exp(problem.log_reference), np.exp(log_policy(problem, np.array([0.7])))
    weights = problem.prompt_weights
    divergence = -weights @ (reference * scores).sum(axis=1)
    left = weights @ (policy * scores).sum(axis=1) + divergence
    right = weights @ ((reference - policy) * problem.costs[..., 0]).sum(axis=1) / 0.5
    assert left == pytest.approx(right, abs=1e-12)
