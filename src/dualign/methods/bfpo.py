"""BFPO: one squared loss whose target depends on both answers' safety (Zhang et al. 2024, arXiv 2408.15313)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dualign.maths.dual import DualRule, DualState
from dualign.methods.c_dpo import relabelled
from dualign.methods.loop import UNSAFE_ABOVE, single_fit, unsafe_flags
from dualign.methods.options import NO_OPTIONS, Options, filled
from dualign.methods.recipe import refuse_other
from dualign.protocols import Problem, Side
from dualign.records import FloatArray, Iterate

if TYPE_CHECKING:
    from torch import Tensor

COLUMN = "safe"
OPTIONS = (UNSAFE_ABOVE,)


def bfpo(
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

    Pairs are labelled by the reward. Of two unsafe answers the more helpful one is pushed *below* the other.

    Raises:
        UsageError: a loss of another name.
    """
    refuse_other("bfpo", loss)
    chosen = filled("bfpo", OPTIONS, options)
    flags = unsafe_flags(problem, float(chosen["unsafe_above"]))
    groups = [
        replace(group, columns={**group.columns, COLUMN: 1 - flag})
        for group, flag in zip(problem.groups, flags, strict=True)
    ]
    nothing = np.zeros_like(problem.limits)
    plain = relabelled(nothing, problem.beta, loss="dpo", labels=labels, temperature=temperature)

    def pairwise(preferred: Side, other: Side) -> Tensor:
        from dualign.maths.losses import bfpo as by_flags

        sides = [(side.log_ratio, side.columns[COLUMN]) for side in (preferred, other)]
        return by_flags(sides[0], sides[1], beta=problem.beta)

    return single_fit(problem, groups, replace(plain, loss=pairwise, columns=(COLUMN,), name=f"bfpo-{labels}"))
