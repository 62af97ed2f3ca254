"""DPO on the reward alone: what C-DPO is at multiplier 0 (Rafailov et al. 2023, arXiv 2305.18290)."""

from collections.abc import Generator

import numpy as np

from dualign.maths.dual import DualRule, DualState, fixed
from dualign.methods.c_dpo import recipe_of
from dualign.methods.options import NO_OPTIONS, Option, Options
from dualign.methods.recipe import SMOOTHING, conservative, trained
from dualign.protocols import Problem
from dualign.records import FloatArray, Iterate

OPTIONS = (Option(SMOOTHING.name, 0.0, f"{SMOOTHING.meaning}; above 0: conservative DPO", within=SMOOTHING.within),)


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
    """Return the generator of the one iterate at multiplier 0; limits are measured, ``rule`` and ``start`` ignored.

    Raises:
        UsageError: an unknown loss or label mode, a temperature that is not positive, smoothing of 0.5 or more.
    """
    nothing = np.zeros_like(start)
    smoothing = options.get(SMOOTHING.name, 0.0)
    recipe = conservative(loss) if smoothing else recipe_of(loss)
    chosen = {SMOOTHING.name: smoothing} if smoothing else NO_OPTIONS
    return trained(
        problem, recipe, rule=fixed(nothing), start=nothing, labels=labels, temperature=temperature, options=chosen
    )
