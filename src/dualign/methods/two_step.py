"""Help and safety learnt apart: PD-DPO offline (2510.05703), SACPO and P-SACPO (2404.11049), MODPO (2310.03708).

Of the first three the step on costs has the coefficient beta over the sum of the multipliers; with soft labels both
orders end at the Gibbs policy of the multipliers. MODPO is DPO on help with a margin of the other objectives' scores.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

import numpy as np

from dualign.errors import UsageError
from dualign.maths.dual import DualState
from dualign.methods.c_dpo import relabelled
from dualign.methods.loop import Fit, dual_loop, fitted, with_columns
from dualign.methods.one_shot import log_ratios, reference_log_probs
from dualign.methods.options import Option, Range, Settings
from dualign.methods.recipe import on_column
from dualign.protocols import Merges, Policy, Problem
from dualign.records import FloatArray, Group, Iterate

LEAST_MULTIPLIER = 1e-6
"""Below it the step on costs, whose coefficient is beta over the multiplier, is left out."""

Step = Callable[[Policy, FloatArray, str], Policy]
"""(reference, multipliers, name) -> the policy that starts at the reference and ends the step."""


def reward_step(problem: Problem, settings: Settings) -> Step:
    """Return the step on the reward's preferences alone; it has no use for the multipliers."""

    def step(reference: Policy, multipliers: FloatArray, name: str) -> Policy:
        return fitted(problem, relabelled(0 * multipliers, problem.beta, settings), name, reference=reference)

    return step


def cost_step(problem: Problem, settings: Settings) -> Step:
    """Return the step on the preferences for less ``multipliers . costs``, the reward left out."""
    groups = scored_as(problem.groups, [np.zeros_like(group.reward) for group in problem.groups])

    def step(reference: Policy, multipliers: FloatArray, name: str) -> Policy:
        total = float(multipliers.sum())
        objective = relabelled(multipliers / total, problem.beta / total, settings)
        return fitted(problem, objective, name, groups=groups, reference=reference)

    return step


def scored_as(
    groups: Sequence[Group], rewards: Sequence[FloatArray], costs: Sequence[FloatArray] | None = None
) -> list[Group]:
    """Return ``groups`` with other scores; without ``costs`` they keep theirs."""
    kept = [group.costs for group in groups] if costs is None else costs
    return [replace(group, reward=r, costs=c) for group, r, c in zip(groups, rewards, kept, strict=True)]


def helpful_then_safe(problem: Problem, settings: Settings) -> Fit:
    """Return the fit of two steps: DPO on the reward at beta, then, with that as reference, on the costs.

    The first step is taken once and serves all multipliers.
    """
    on_reward, on_costs = reward_step(problem, settings), cost_step(problem, settings)
    helpful: list[Policy] = []

    def fit(multipliers: FloatArray, name: str) -> Policy:
        second = float(multipliers.sum()) >= LEAST_MULTIPLIER
        if not helpful:
            helpful.append(on_reward(problem.reference, multipliers, f"{name}-helpful" if second else name))
        return on_costs(helpful[0], multipliers, name) if second else helpful[0]

    return fit


def safe_then_helpful(problem: Problem, settings: Settings) -> Fit:
    """Return the fit of the same two steps in the other order; both are taken for every multiplier."""
    on_reward, on_costs = reward_step(problem, settings), cost_step(problem, settings)

    def fit(multipliers: FloatArray, name: str) -> Policy:
        reference = problem.reference
        if float(multipliers.sum()) >= LEAST_MULTIPLIER:
            reference = on_costs(reference, multipliers, f"{name}-safe")
        return on_reward(reference, multipliers, name)

    return fit


def pd_dpo(problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier: DPO on help, then on harm against that policy.

    The primal step of Du, Koong & Srikant 2025, with the harm preference's implied cost ``beta log(pi_r / pi)``, is DPO
    at ``beta / multiplier`` from the policy that learnt the reward. The rule gradient is the direction of its dual
    step; the projection to an interval and every other rule are reconstructions. The exploration bonuses of the online
    form are left out.
    """
    return dual_loop(problem, settings, helpful_then_safe(problem, settings))


ORDERS = {"helpful-first": helpful_then_safe, "safe-first": safe_then_helpful}
SACPO_OPTIONS = (Option("order", "helpful-first", "which preferences the first step learns from", tuple(ORDERS)),)


def sacpo(problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier; the second step starts at the first and refers to it.

    Wachi et al. 2024 pick beta' = beta / multiplier by hand; here the dual rule finds it, which is new.
    """
    return dual_loop(problem, settings, ORDERS[str(settings.options["order"])](problem, settings))


P_SACPO_OPTIONS = (
    Option(
        "q", 0.5, "share of SACPO's policy in the merge, above 0 and up to 1", within=Range(0, 1, low_included=False)
    ),
)


def p_sacpo(problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier ``q lambda``, SACPO's own being lambda.

    Merged are log-probabilities, which is exact; the paper merges weights, which is so for log-linear models alone.

    Raises:
        UsageError: a backend that cannot merge.
    """
    share, backend = float(settings.options["q"]), problem.backend
    if not isinstance(backend, Merges):
        raise UsageError("method.name: needs to merge policies, which this backend cannot; finite worlds can")
    steps = helpful_then_safe(problem, settings)

    def fit(multipliers: FloatArray, name: str) -> Policy:
        helpful = steps(0 * multipliers, f"{name}-first")
        if multipliers.sum() < LEAST_MULTIPLIER:
            return helpful
        return backend.merge(helpful, steps(multipliers / share, f"{name}-safe"), share=share, name=name)

    return dual_loop(problem, settings, fit)


MODPO_SCORE = "modpo_score"
"""Per-response column: the other objectives' weighted score, divided by the sum of their multipliers."""
MODPO_OPTIONS = (
    Option(
        "margin",
        "explicit",
        "explicit: minus the costs as they are; implicit: log-ratios of a policy that learnt to avoid each cost",
        ("explicit", "implicit"),
    ),
)


def modpo(problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier, whose weights are w1 / w0 = multiplier, w0 + w1 = 1.

    Pairs are labelled by the reward alone. The weights are the user's in the paper; here the dual rule finds them,
    which is new. ``loss`` serves the policies of the implicit margin; the last fit has MODPO's own.
    """
    from dualign.maths.losses import modpo as pairwise

    plain = relabelled(np.zeros_like(settings.start), problem.beta, settings)
    implicit = settings.options["margin"] == "implicit"
    scores = _implicit(problem, settings) if implicit else [-group.costs for group in problem.groups]

    def fit(multipliers: FloatArray, name: str) -> Policy:
        total = float(multipliers.sum())
        first, second = 1 / (1 + total), total / (1 + total)
        shares = multipliers / total if total > 0 else multipliers

        # Labels at a temperature, and so the whole margin over it.
        weights = first * settings.temperature, second
        margin = on_column(pairwise, MODPO_SCORE, beta=problem.beta * first, weights=weights)
        name_of_loss = f"modpo({total!r})-{settings.labels}"
        objective = replace(plain, loss=margin, columns=(MODPO_SCORE,), name=name_of_loss)
        groups = with_columns(problem.groups, **{MODPO_SCORE: [score @ shares for score in scores]})
        return fitted(problem, objective, name, groups=groups)

    return dual_loop(problem, settings, fit)


def _implicit(problem: Problem, settings: Settings) -> list[FloatArray]:
    """Return shape ``[response, constraint]`` a group: beta log-ratio of the policy fitted on each cost alone."""
    step, reference = cost_step(problem, settings), reference_log_probs(problem)
    columns = []
    for i, alone in enumerate(np.eye(len(problem.limits))):
        policy = step(problem.reference, alone, f"safe-{i}")
        columns.append([problem.beta * values for values in log_ratios(problem, policy, reference)])
    return [np.stack(values, axis=1) for values in zip(*columns, strict=True)]
