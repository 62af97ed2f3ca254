"""The dual solved on the problem's own groups, before anything is trained; MoCAN, which stops there, and CAID.

MoCAN: Huang et al. 2024, arXiv 2405.19544. CAID: Zhang et al. 2025, arXiv 2505.19387.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np

from dualign.maths.dual import DualState, Stopping, feasible, subgradient
from dualign.maths.one_shot import OneShot, finite_problem, from_problem
from dualign.methods.c_dpo import c_dpo, relabelled
from dualign.methods.loop import dual_loop, fitted
from dualign.methods.options import COUNT, NOT_NEGATIVE, Option, Settings
from dualign.protocols import Policy, Problem
from dualign.records import FloatArray, Group, Iterate

WHOLE = 1e-9
"""Responses whose reference probabilities sum to 1 up to this are all there are."""
HOPELESS = 32.0
"""Multiplier that is tried where no reweighting of the groups meets the limits."""


def aimed_limits(problem: Problem) -> FloatArray:
    """Return shape ``[constraint]``: the limits less the margin that the reference's own costs ask for."""
    if problem.margin is None:
        return problem.limits
    return problem.limits - problem.margin(problem.evaluate(problem.reference))


def shares(problem: Problem) -> FloatArray:
    """Return shape ``[constraint]``: what turns a limit on a slice into one on the mean over all groups."""
    return np.ones_like(problem.limits) if problem.shares is None else problem.shares


def offline_dual(
    groups: Sequence[Group], limits: FloatArray, *, beta: float, reference: Sequence[FloatArray]
) -> OneShot:
    """Return the one-shot dual of ``groups`` for ``limits`` on the means over all of them.

    ``reference`` holds each group's ``[response]`` log-probabilities under the reference. Different responses whose
    probabilities sum to 1 in every group are the whole support and weigh as the reference does; else they are draws
    of it, and each weighs the same.
    """
    weights = np.full((len(groups), max(len(group.responses) for group in groups)), -np.inf)
    whole = all(_is_whole(group, known) for group, known in zip(groups, reference, strict=True))
    for row, known in enumerate(reference):
        weights[row, : len(known)] = known - np.logaddexp.reduce(known) if whole else -np.log(len(known))
    return from_problem(finite_problem(groups, weights, limits=limits, beta=beta), draws=not whole)


def _is_whole(group: Group, log_probs: FloatArray) -> bool:
    different = len({(response.text, response.tokens) for response in group.responses}) == len(group.responses)
    return different and abs(float(np.logaddexp.reduce(log_probs))) <= WHOLE


def reference_log_probs(problem: Problem) -> list[FloatArray]:
    """Return each group's ``[response]`` log-probabilities under the reference."""
    return problem.backend.log_probs(problem.reference, problem.groups)


def log_ratios(problem: Problem, policy: Policy, reference: Sequence[FloatArray]) -> list[FloatArray]:
    """Return each group's ``[response]`` log pi - log reference."""
    own = problem.backend.log_probs(policy, problem.groups)
    return [values - known for values, known in zip(own, reference, strict=True)]


def one_shot_multipliers(problem: Problem) -> FloatArray:
    """Return shape ``[constraint]``: the one-shot dual of the problem's groups, ``HOPELESS`` where none is feasible."""
    aimed = aimed_limits(problem) * shares(problem)
    return settled(offline_dual(problem.groups, aimed, beta=problem.beta, reference=reference_log_probs(problem)))


def settled(found: OneShot) -> FloatArray:
    """Return the multipliers of ``found``, ``HOPELESS`` where no reweighting of its responses meets the limits."""
    return found.multipliers if found.feasible else np.full_like(found.multipliers, HOPELESS)


def verified(run: Generator[Iterate, None, DualState]) -> Generator[Iterate, None, DualState]:
    """Return ``run``, a single fit, its last state saying what the fitted policy itself showed.

    ``slack`` or ``converged`` where the limits hold on its own answers, ``budget`` where the one fit did not do.
    """
    state = yield from run
    last = state.history[-1]
    if not feasible(last, Stopping()):
        return replace(state, status="budget")
    return replace(state, status="converged" if np.any(last.multipliers > 0) else "slack")


def mocan(problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
    """Yield the one iterate at the multipliers that minimise the dual of the groups; return whether it held.

    The rule ``fixed`` keeps ``start`` instead; any other is ignored. Looking at the fitted policy's own answers
    is ours: the original stops at the fit. Where no reweighting of the groups meets the limits, the policy of a large
    multiplier is fitted and looked at all the same.
    """
    found = settings.start if settings.rule.name == "fixed" else one_shot_multipliers(problem)
    return (yield from verified(c_dpo(problem, settings.at(found))))


CAID_OPTIONS = (
    Option(
        "step",
        0.0,
        "dual step in normalised units; 0: 4 beta / the largest squared range of costs in a group",
        within=NOT_NEGATIVE,
    ),
    Option("rounds", 12.0, "fits at the most", within=COUNT),
)


def caid(problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
    """Yield an iterate for every dual step, the first at the one-shot multipliers; each fit goes on from the last.

    The rule ``fixed`` keeps ``start``; any other is replaced by the method's own subgradient.
    """
    last: Policy | None = None

    def fit(multipliers: FloatArray, name: str) -> Policy:
        nonlocal last
        last = fitted(problem, relabelled(multipliers, problem.beta, settings), name, start=last)
        return last

    if settings.rule.name != "fixed":
        step = float(settings.options["step"]) or _largest_step(problem)
        own = subgradient(step=step, stopping=Stopping(budget=int(settings.options["rounds"])))
        settings = replace(settings, rule=own, start=one_shot_multipliers(problem))
    return (yield from dual_loop(problem, settings, fit))


def _largest_step(problem: Problem) -> float:
    """Return 1 / L, with which the dual of the groups never rises; 1 where no cost varies."""
    widest = max(float((np.ptp(group.costs, axis=0) ** 2).sum()) for group in problem.groups)
    return 4 * problem.beta / widest if widest > 0 else 1.0
