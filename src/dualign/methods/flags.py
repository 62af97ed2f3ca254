"""What methods that read safety flags share: which answers are unsafe, and the one fit that they are."""

from collections.abc import Generator, Sequence

import numpy as np

from dualign.backends.protocol import Objective, Policy, Problem
from dualign.maths.dual import DualRule, DualState, fixed
from dualign.methods.loop import dual_loop
from dualign.methods.options import Option
from dualign.records import FloatArray, Group, Iterate

UNSAFE_ABOVE = Option("unsafe_above", 0.0, "raw cost above which an answer is unsafe; any of several costs")


def unsafe_flags(problem: Problem, unsafe_above: float) -> list[FloatArray]:
    """Return shape ``[response]`` a group: 1 where any raw cost lies above ``unsafe_above``, else 0."""
    units = np.ones_like(problem.limits) if problem.cost_units is None else problem.cost_units
    return [np.any(group.costs * units > unsafe_above, axis=1).astype(np.float64) for group in problem.groups]


def single_fit(problem: Problem, groups: Sequence[Group], objective: Objective) -> Generator[Iterate, None, DualState]:
    """Return the generator of the one iterate of a method without multipliers; limits are measured and ignored."""
    nothing = np.zeros_like(problem.limits)
    rule: DualRule = fixed(nothing)

    def fit(multipliers: FloatArray, name: str) -> Policy:  # noqa: ARG001 (there is one fit)
        return problem.backend.fit(
            groups, objective=objective, reference=problem.reference, start=None, seed=problem.seed, name=name
        )

    return dual_loop(problem, rule, nothing, fit)
