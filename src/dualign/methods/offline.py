"""The dual solved on the problem's own groups, before anything is trained: what one-shot methods begin with."""

from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np

from dualign.maths.dual import DualState, Stopping
from dualign.maths.dual_rule import feasible
from dualign.maths.exact import FiniteProblem
from dualign.maths.one_shot import OneShot, from_problem
from dualign.protocols import Policy, Problem
from dualign.records import FloatArray, Group, Iterate

WHOLE = 1e-9
"""Responses whose reference probabilities sum to 1 up to this are all there are."""
HOPELESS = 32.0
"""Multiplier that is tried where no reweighting of the groups meets the limits."""
STOPPING = Stopping()


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
    width = max(len(group.responses) for group in groups)
    shape = len(groups), width
    weights, reward = np.full(shape, -np.inf), np.zeros(shape)
    costs = np.zeros((*shape, len(limits)))
    whole = all(_is_whole(group, known) for group, known in zip(groups, reference, strict=True))
    for row, (group, known) in enumerate(zip(groups, reference, strict=True)):
        used = slice(len(group.responses))
        weights[row, used] = known - np.logaddexp.reduce(known) if whole else -np.log(len(group.responses))
        reward[row, used], costs[row, used] = group.reward, group.costs
    prompts = np.array([group.weight for group in groups])
    finite = FiniteProblem(weights, reward, costs, prompts / prompts.sum(), limits, beta)
    return from_problem(finite, draws=not whole)


def _is_whole(group: Group, log_probs: FloatArray) -> bool:
    different = len({(response.text, response.tokens) for response in group.responses}) == len(group.responses)
    return different and abs(float(np.logaddexp.reduce(log_probs))) <= WHOLE


def reference_log_probs(problem: Problem) -> list[FloatArray]:
    """Return each group's ``[response]`` log-probabilities under the reference."""
    return problem.backend.log_probs(problem.reference, problem.groups)


def one_shot_multipliers(problem: Problem) -> FloatArray:
    """Return shape ``[constraint]``: the one-shot dual of the problem's groups, ``HOPELESS`` where none is feasible."""
    found = offline_dual(
        problem.groups,
        aimed_limits(problem) * shares(problem),
        beta=problem.beta,
        reference=reference_log_probs(problem),
    )
    return settled(found)


def settled(found: OneShot) -> FloatArray:
    """Return the multipliers of ``found``, ``HOPELESS`` where no reweighting of its responses meets the limits."""
    return found.multipliers if found.feasible else np.full_like(found.multipliers, HOPELESS)


def verified(run: Generator[Iterate, None, DualState]) -> Generator[Iterate, None, DualState]:
    """Return ``run``, a single fit, its last state saying what the fitted policy itself showed.

    ``slack`` or ``converged`` where the limits hold on its own answers, ``budget`` where the one fit did not do.
    """
    state = yield from run
    last = state.history[-1]
    if not feasible(last, STOPPING):
        return replace(state, status="budget")
    return replace(state, status="converged" if np.any(last.multipliers > 0) else "slack")


def log_ratios(problem: Problem, policy: Policy, reference: Sequence[FloatArray]) -> list[FloatArray]:
    """Return each group's ``[response]`` log pi - log reference."""
    own = problem.backend.log_probs(policy, problem.groups)
    return [values - known for values, known in zip(own, reference, strict=True)]
