"""DPO on the reward alone: what C-DPO is at multiplier 0 (Rafailov et al. 2023, arXiv 2305.18290)."""

from collections.abc import Generator

import numpy as np

from dualign.backends.protocol import Problem
from dualign.maths.dual import DualRule, DualState, fixed
from dualign.methods.c_dpo import c_dpo
from dualign.methods.options import NO_OPTIONS, Options
from dualign.records import FloatArray, Iterate


def dpo(
    problem: Problem,
    *,
    rule: DualRule,  # noqa: ARG001 (every method of the table is called alike)
    start: FloatArray,
    loss: str = "dpo",
    labels: str = "soft",
    temperature: float = 1.0,
    options: Options = NO_OPTIONS,
) -> Generator[Iterate, None, DualState]:
    """Yield the one iterate at multiplier 0; limits are measured and ignored, ``rule`` and ``start`` too."""
    nothing = np.zeros_like(start)
    return c_dpo(
        problem, rule=fixed(nothing), start=nothing, loss=loss, labels=labels, temperature=temperature, options=options
    )
