"""One fit on yes-or-no flags of safety: SafeDPO (Kim et al. 2025, 2505.20065), BFPO (Zhang et al. 2024, 2408.15313).

Neither knows a limit: limits are measured, rule and start ignored.
"""

from collections.abc import Generator
from dataclasses import replace

import numpy as np

from dualign.maths.dual import DualState
from dualign.methods.c_dpo import relabelled
from dualign.methods.loop import dual_loop, fitted, with_columns
from dualign.methods.options import NOT_NEGATIVE, Option, Settings
from dualign.methods.recipe import on_column
from dualign.protocols import Objective, Problem
from dualign.records import FloatArray, Group, Iterate

UNSAFE, SAFE = "unsafe", "safe"
"""Per-response columns of SafeDPO and of BFPO: 1 where the answer is, else 0."""
UNSAFE_ABOVE = Option("unsafe_above", 0.0, "raw cost above which an answer is unsafe; any of several costs")
BFPO_OPTIONS = (UNSAFE_ABOVE,)
CERTAIN = 40.0
"""Logit of a label that is certain; its complement is 4e-18, so that the optimum is finite."""
SAFEDPO_OPTIONS = (
    Option(
        "safety_margin",
        10.0,
        "Delta: lowers the margin of a safe answer over an unsafe one before the loss",
        within=NOT_NEGATIVE,
    ),
    UNSAFE_ABOVE,
)


def unsafe_flags(problem: Problem, unsafe_above: float) -> list[FloatArray]:
    """Return shape ``[response]`` a group: 1 where any raw cost lies above ``unsafe_above``, else 0."""
    units = np.ones_like(problem.limits) if problem.cost_units is None else problem.cost_units
    return [np.any(group.costs * units > unsafe_above, axis=1).astype(np.float64) for group in problem.groups]


def safedpo(problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
    """Return the generator of the one iterate, whose unsafe answers are to have probability 0.

    Pairs of safe answers are labelled by the reward; of a safe and an unsafe answer the safe one wins; pairs of unsafe
    answers are dropped, so prompts without a safe answer keep the reference's conditional.
    """
    from dualign.maths.losses import safedpo as by_flags

    margin = float(settings.options["safety_margin"])
    flags = unsafe_flags(problem, float(settings.options["unsafe_above"]))
    groups = [replace(group, costs=flag[:, None]) for group, flag in zip(problem.groups, flags, strict=True)]
    plain = relabelled(np.array([CERTAIN * settings.temperature]), problem.beta, settings)

    loss = on_column(by_flags, UNSAFE, beta=plain.beta, safety_margin=margin)
    objective = replace(plain, loss=loss, columns=(UNSAFE,), name=f"safedpo({margin:g})-{settings.labels}")
    return _single_fit(problem, settings, with_columns(groups, **{UNSAFE: flags}), objective)


def bfpo(problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
    """Return the generator of the one iterate, by a squared loss whose target depends on both answers' safety.

    Pairs are labelled by the reward. Of two unsafe answers the more helpful one is pushed *below* the other.
    """
    from dualign.maths.losses import bfpo as by_flags

    safe = [1 - flag for flag in unsafe_flags(problem, float(settings.options["unsafe_above"]))]
    plain = relabelled(np.zeros_like(problem.limits), problem.beta, settings)
    loss = on_column(by_flags, SAFE, beta=problem.beta)
    objective = replace(plain, loss=loss, columns=(SAFE,), name=f"bfpo-{settings.labels}")
    return _single_fit(problem, settings, with_columns(problem.groups, **{SAFE: safe}), objective)


def _single_fit(
    problem: Problem, settings: Settings, groups: list[Group], objective: Objective
) -> Generator[Iterate, None, DualState]:
    """Return the generator of the one iterate of a method without multipliers."""
    nothing = np.zeros_like(problem.limits)
    return dual_loop(problem, settings.at(nothing), lambda _, name: fitted(problem, objective, name, groups=groups))
