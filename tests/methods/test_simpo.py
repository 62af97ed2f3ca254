"""SimPO by hand, against its closed form, and against the root of its slope."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import expit

from dualign.maths.dual import fixed
from dualign.methods.options import Settings
from dualign.methods.recipes import REFERENCE, SIMPO, TOKENS, with_lengths
from dualign.protocols import Policy, Problem, Side
from dualign.records import Evaluation, Response
from dualign.worlds.solving import SolveSettings, solve
from dualign.worlds.tabular import TabularBackend
from small_worlds import small_world


def settings(**options: float) -> Settings:
    return Settings(fixed(np.zeros(1)), np.zeros(1), options=options)


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_loss_by_hand() -> None:
    # log pi = -12 over 6 tokens and -9 over 3: means -2 and -3, so beta 2 * (1 - 0.25) = 1.5.
    objective = SIMPO.objective(np.zeros(1), 0.5, settings(scale=4.0, gamma_beta_ratio=0.25))
    preferred = Side(doubles(1.0), {TOKENS: doubles(6), REFERENCE: doubles(-13)})
    other = Side(doubles(-2.0), {TOKENS: doubles(3), REFERENCE: doubles(-7)})
    assert float(objective.loss(preferred, other)) == pytest.approx(np.log1p(np.exp(-1.5)))
    assert float(objective.loss(other, preferred)) == pytest.approx(np.log1p(np.exp(2.5)))
    warmer = SIMPO.objective(np.zeros(1), 0.5, replace(settings(scale=4.0, gamma_beta_ratio=0.25), temperature=3.0))
    assert float(warmer.loss(preferred, other)) == pytest.approx(np.log1p(np.exp(-0.5)))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_without_a_margin_a_table_ends_at_the_closed_form(scale: float) -> None:
    world = small_world(3, beta=0.5)
    options = {"scale": scale, "gamma_beta_ratio": 0.0}
    found = solve(world, SolveSettings(method="simpo", multipliers=np.array([0.8]), options=options))
    assert found.figures["fit_distance"] <= 2e-6
    problem = world.problem()
    scores = (problem.reward - 0.8 * problem.costs[..., 0]) / (scale * 0.5)
    for row, live in enumerate(np.isfinite(problem.log_reference)):
        expected = np.exp(scores[row, live] - np.logaddexp.reduce(scores[row, live]))
        np.testing.assert_allclose(np.exp(found.log_probs[row, live]), expected, atol=1e-6)


def test_a_margin_moves_two_answers_to_the_root_of_the_slope() -> None:
    raw = small_world(5, beta=0.5)
    prompts = []
    for prompt in raw.prompts:
        share = sum(response.reference for response in prompt.responses[:2])
        prompts.append(
            replace(prompt, responses=tuple(replace(r, reference=r.reference / share) for r in prompt.responses[:2]))
        )
    world = replace(raw, prompts=tuple(prompts))
    backend = TabularBackend(world)
    run = SIMPO.run(problem(backend, world.groups()), settings(scale=1.0, gamma_beta_ratio=0.7))
    policy = backend.table(next(run).policy)
    for row, group in enumerate(world.groups()):
        label = expit(group.reward[0] - group.reward[1])
        lead = brentq(lambda d, p=label: p * expit(0.35 - d) - (1 - p) * expit(0.35 + d), -50, 50, xtol=1e-13)
        assert 0.5 * (policy[row, 0] - policy[row, 1]) == pytest.approx(lead, abs=1e-7)


def problem(backend: TabularBackend, groups: list) -> Problem:
    def unread(policy: Policy) -> Evaluation:
        return Evaluation(0.0, 0.0, np.zeros(1), np.zeros(1), np.zeros(1), 0.0, 0.0, 1)

    return Problem(backend, groups, np.zeros(1), backend.reference, unread, 0.5, 0)


def test_the_columns_are_lengths_and_log_probabilities() -> None:
    world = small_world(5, beta=0.5)
    backend, first = TabularBackend(world), world.groups()[0]
    told = tuple(Response(r.text, tokens=(7,) * (k + 1)) for k, r in enumerate(first.responses))
    made = with_lengths(problem(backend, [replace(first, responses=told)])).groups[0]
    assert made.columns[TOKENS].tolist() == [k + 1 for k in range(len(told))]
    np.testing.assert_allclose(np.exp(made.columns[REFERENCE]), [r.reference for r in world.prompts[0].responses])
