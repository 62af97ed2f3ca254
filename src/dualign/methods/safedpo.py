"""SafeDPO: unsafe answers are to have probability 0, by one DPO run (Kim et al. 2025, arXiv 2505.20065)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dualign.maths.dual import DualRule, DualState
from dualign.methods.c_dpo import relabelled
from dualign.methods.loop import UNSAFE_ABOVE, single_fit, unsafe_flags
from dualign.methods.options import NO_OPTIONS, NOT_NEGATIVE, Option, Options, filled
from dualign.methods.recipe import refuse_other
from dualign.protocols import Problem, Side
from dualign.records import FloatArray, Iterate

if TYPE_CHECKING:
    from torch import Tensor

COLUMN = "unsafe"
CERTAIN = 40.0
"""Logit of a label that is certain; its complement is 4e-18, so that the optimum is finite."""
OPTIONS = (
    Option(
        "safety_margin",
        10.0,
        "Delta: lowers the margin of a safe answer over an unsafe one before the loss",
        within=NOT_NEGATIVE,
    ),
    UNSAFE_ABOVE,
)


def safedpo(
    problem: Problem,
    *,
    rule: DualRule,  # noqa: ARG001 (every method of the table is called alike)
    start: FloatArray,  # noqa: ARG001
    loss: str = "dpo",
    labels: str = "soft",
    temperature: float = 1.0,
    options: Options = NO_OPTIONS,
) -> Generator[Iterate, None, DualState]:
    """Return the generator of the one iterate; limits are measured and ignored, ``rule`` and ``start`` too.

    Pairs of safe answers are labelled by the reward; of a safe and an unsafe answer the safe one wins; pairs of unsafe
    answers are dropped, so prompts without a safe answer keep the reference's conditional.

    Raises:
        UsageError: a loss of another name, a negative safety margin.
    """
    chosen = filled("safedpo", OPTIONS, options)
    margin = float(chosen["safety_margin"])
    refuse_other("safedpo", loss)
    flags = unsafe_flags(problem, float(chosen["unsafe_above"]))
    groups = [
        replace(group, costs=flag[:, None], columns={**group.columns, COLUMN: flag})
        for group, flag in zip(problem.groups, flags, strict=True)
    ]
    certain = np.array([CERTAIN * temperature])
    plain = relabelled(certain, problem.beta, loss="dpo", labels=labels, temperature=temperature)

    def pairwise(preferred: Side, other: Side) -> Tensor:
        from dualign.maths.losses import safedpo as by_flags

        sides = [(side.log_ratio, side.columns[COLUMN]) for side in (preferred, other)]
        return by_flags(sides[0], sides[1], beta=plain.beta, safety_margin=margin)

    objective = replace(plain, loss=pairwise, columns=(COLUMN,), name=f"safedpo({margin:g})-{labels}")
    return single_fit(problem, groups, objective)
