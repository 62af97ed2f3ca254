"""PeCAN: the multipliers from preferences alone, one fit, one look (Huang et al. 2024, arXiv 2405.19544)."""

from collections.abc import Generator, Mapping
from dataclasses import replace

import numpy as np

from dualign.maths.conversion import Target, from_target, systems
from dualign.maths.dual import DualState
from dualign.maths.exact import FiniteProblem, log_policy
from dualign.methods.c_dpo import c_dpo, relabelled
from dualign.methods.loop import fitted
from dualign.methods.one_shot import (
    aimed_limits,
    log_ratios,
    offline_dual,
    reference_log_probs,
    settled,
    shares,
    verified,
)
from dualign.methods.options import POSITIVE, Option, Options, Settings
from dualign.methods.two_step import scored_as
from dualign.protocols import Problem
from dualign.records import FloatArray, Group, Iterate

OPTIONS = (
    Option(
        "label_scale", "bt", "bt: labels in Bradley-Terry logits; released: log-ratios as they are", ("bt", "released")
    ),
    Option(
        "beta",
        0.1,
        "coefficient of the last fit with released labels, which are log-ratios and have no unit",
        within=POSITIVE,
    ),
)


def pecan(problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
    """Yield the one iterate at the multipliers that the two kinds of preferences alone ask for.

    One policy is fitted on the reward's preferences and one on each cost's, all at ``beta_p`` = the problem's beta.
    Their log-ratios ``s`` are the scores, known up to a constant a prompt: ``reward = beta_p s + f(x)``. So a limit is
    one relative to the reference, whose own costs are measured. The rule ``fixed`` keeps ``start``.
    """
    plain = relabelled(np.zeros_like(problem.limits), problem.beta, settings)
    reference = reference_log_probs(problem)

    def preferring(rewards: list[FloatArray], name: str) -> list[FloatArray]:
        policy = fitted(problem, plain, name, groups=scored_as(problem.groups, rewards))
        return log_ratios(problem, policy, reference)

    helpful = preferring([group.reward for group in problem.groups], "00-reward")
    safe = [
        preferring([-group.costs[:, i] for group in problem.groups], f"00-cost-{i}") for i in range(len(problem.limits))
    ]
    safety = [np.stack(columns, axis=1) for columns in zip(*safe, strict=True)]
    scored = scored_as(problem.groups, helpful, [-score for score in safety])
    multipliers = settings.start if settings.rule.name == "fixed" else _multipliers(problem, scored, reference)
    return (yield from verified(c_dpo(_labelled(problem, scored, settings.options), settings.at(multipliers))))


def _multipliers(problem: Problem, scored: list[Group], reference: list[FloatArray]) -> FloatArray:
    """Return the minimiser of the preference dual; ``scored`` holds log-ratios, so its beta is 1.

    Its gradient over ``beta_p`` is ``E[s_safe] + KL(reference || safe) - margin / beta_p`` with the margin
    ``E_reference[cost] - limit``. Here costs are ``-s_safe``, so their limit is ``KL(reference || safe) - margin /
    beta_p``.
    """
    measured = problem.evaluate(problem.reference).costs
    nothing = np.zeros_like(problem.limits)
    # KL(reference || safe) = E_reference[-s_safe] is the reference's own expected cost in these scores.
    divergence = offline_dual(scored, nothing, beta=1.0, reference=reference).reference.costs
    wanted = shares(problem) * (measured - aimed_limits(problem)) / problem.beta
    return settled(offline_dual(scored, divergence - wanted, beta=1.0, reference=reference))


def _labelled(problem: Problem, scored: list[Group], options: Options) -> Problem:
    """Return the problem of the last fit: scores in Bradley-Terry logits, or the log-ratios themselves."""
    if options["label_scale"] == "released":
        return replace(problem, groups=scored, beta=float(options["beta"]))
    logits = [replace(group, reward=problem.beta * group.reward, costs=problem.beta * group.costs) for group in scored]
    return replace(problem, groups=logits)


def pecan_target(problem: FiniteProblem, multipliers: FloatArray, options: Options) -> FloatArray:
    """Return the Gibbs policy of ``beta_p``, of ``beta_p beta`` with released labels."""
    if options["label_scale"] == "released":
        problem = replace(problem, beta=problem.beta * float(options["beta"]))
    return log_policy(problem, multipliers)


def pecan_parameters(multipliers: FloatArray, beta: float, options: Options) -> Mapping[str, float]:
    """Return the multiplier on log-ratios and ``beta_p``; the largest multiplier where there are several."""
    found = from_target(systems()["pecan"], Target(float(multipliers.max()), beta))
    return {**found, "beta": float(options["beta"])} if options["label_scale"] == "released" else found
