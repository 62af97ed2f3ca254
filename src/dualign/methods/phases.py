"""C-DPO at one hand-picked multiplier: what people do today, and the arm that a search is compared with."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dualign.maths import dual
from dualign.methods.c_dpo import c_dpo, relabelled
from dualign.methods.loop import Fit
from dualign.methods.options import NO_OPTIONS, Options
from dualign.protocols import Policy, Problem
from dualign.records import FloatArray, Group, Iterate


def fixed(
    problem: Problem,
    *,
    rule: dual.DualRule,  # noqa: ARG001 (every method of the table is called alike)
    start: FloatArray,
    loss: str = "dpo",
    labels: str = "soft",
    temperature: float = 1.0,
    options: Options = NO_OPTIONS,
) -> Generator[Iterate, None, dual.DualState]:
    """Yield the one iterate at the multipliers ``start``; limits are measured and never acted on."""
    rule = dual.fixed(start)
    return c_dpo(problem, rule=rule, start=start, loss=loss, labels=labels, temperature=temperature, options=options)


LEAST_MULTIPLIER = 1e-6
"""Below it the step on costs, whose coefficient is beta over the multiplier, is left out."""


@dataclass(frozen=True, slots=True)
class Labelling:
    """How every step reads its pairs."""

    loss: str
    labels: str
    temperature: float


Step = Callable[[Policy, FloatArray, float, str], Policy]
"""(reference, weights of the costs, beta, name) -> the policy that starts at the reference and ends the step."""


def reward_step(problem: Problem, labelling: Labelling) -> Step:
    """Return the step on the reward's preferences alone; it has no use for the weights."""

    def step(reference: Policy, weights: FloatArray, beta: float, name: str) -> Policy:
        return fit_step(problem, problem.groups, labelling, (reference, np.zeros_like(weights), beta, name))

    return step


def cost_step(problem: Problem, labelling: Labelling) -> Step:
    """Return the step on the preferences for less ``weights . costs``, the reward left out."""
    groups = scored_as(problem.groups, [np.zeros_like(group.reward) for group in problem.groups])

    def step(reference: Policy, weights: FloatArray, beta: float, name: str) -> Policy:
        return fit_step(problem, groups, labelling, (reference, weights, beta, name))

    return step


def fit_step(
    problem: Problem, groups: Sequence[Group], labelling: Labelling, asked: tuple[Policy, FloatArray, float, str]
) -> Policy:
    """Return the policy fitted on ``groups`` for ``asked``: reference, multipliers, beta, name."""
    reference, multipliers, beta, name = asked
    return problem.backend.fit(
        groups,
        objective=relabelled(
            multipliers, beta, loss=labelling.loss, labels=labelling.labels, temperature=labelling.temperature
        ),
        reference=reference,
        start=None,
        seed=problem.seed,
        name=name,
    )


def scored_as(
    groups: Sequence[Group], rewards: Sequence[FloatArray], costs: Sequence[FloatArray] | None = None
) -> list[Group]:
    """Return ``groups`` with other scores; without ``costs`` they keep theirs."""
    kept = [group.costs for group in groups] if costs is None else costs
    return [replace(group, reward=r, costs=c) for group, r, c in zip(groups, rewards, kept, strict=True)]


def helpful_then_safe(problem: Problem, labelling: Labelling) -> Fit:
    """Return the fit of two steps: DPO on the reward at beta, then, with that as reference, on the costs.

    The second step's coefficient is beta over the sum of the multipliers; with soft labels it ends at the Gibbs policy
    of the multipliers. The first is taken once and serves all multipliers.
    """
    on_reward, on_costs = reward_step(problem, labelling), cost_step(problem, labelling)
    helpful: list[Policy] = []

    def fit(multipliers: FloatArray, name: str) -> Policy:
        total = float(multipliers.sum())
        second = total >= LEAST_MULTIPLIER
        if not helpful:
            first_name = f"{name}-helpful" if second else name
            helpful.append(on_reward(problem.reference, multipliers, problem.beta, first_name))
        return on_costs(helpful[0], multipliers / total, problem.beta / total, name) if second else helpful[0]

    return fit


def safe_then_helpful(problem: Problem, labelling: Labelling) -> Fit:
    """Return the fit of the same two steps in the other order; both are taken for every multiplier."""
    on_reward, on_costs = reward_step(problem, labelling), cost_step(problem, labelling)

    def fit(multipliers: FloatArray, name: str) -> Policy:
        total, reference = float(multipliers.sum()), problem.reference
        if total >= LEAST_MULTIPLIER:
            reference = on_costs(reference, multipliers / total, problem.beta / total, f"{name}-safe")
        return on_reward(reference, multipliers, problem.beta, name)

    return fit
