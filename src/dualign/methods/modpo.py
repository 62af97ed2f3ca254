"""MODPO: DPO on help with a margin of the other objectives' scores (Zhou et al. 2023, arXiv 2310.03708)."""

from collections.abc import Generator
from dataclasses import replace

import numpy as np

from dualign.maths.dual import DualState
from dualign.methods.c_dpo import relabelled
from dualign.methods.loop import dual_loop, fitted, with_columns
from dualign.methods.one_shot import log_ratios, reference_log_probs
from dualign.methods.options import Option, Settings
from dualign.methods.recipe import on_column
from dualign.methods.two_step import cost_step
from dualign.protocols import Policy, Problem
from dualign.records import FloatArray, Iterate

COLUMN = "modpo_score"
"""Per-response column: the other objectives' weighted score, divided by the sum of their multipliers."""
OPTIONS = (
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
        margin = on_column(pairwise, COLUMN, beta=problem.beta * first, weights=weights)
        name_of_loss = f"modpo({total!r})-{settings.labels}"
        objective = replace(plain, loss=margin, columns=(COLUMN,), name=name_of_loss)
        groups = with_columns(problem.groups, **{COLUMN: [score @ shares for score in scores]})
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
