"""RePO as preference optimisation: only a cost above 0 counts (Peng et al. 2024, arXiv 2410.19933)."""

from collections.abc import Generator
from dataclasses import replace

import numpy as np

from dualign.maths.dual import DualRule, DualState
from dualign.maths.exact import FiniteProblem, log_policy
from dualign.methods.c_dpo import c_dpo
from dualign.methods.options import NO_OPTIONS, Options
from dualign.methods.recipe import refuse_slopes
from dualign.protocols import Problem
from dualign.records import FloatArray, Iterate


def repo_dpo(
    problem: Problem,
    *,
    rule: DualRule,
    start: FloatArray,
    loss: str = "dpo",
    labels: str = "soft",
    temperature: float = 1.0,
    options: Options = NO_OPTIONS,  # noqa: ARG001 (every method of the table is called alike)
) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier: C-DPO whose pairs are priced by ``max(cost, 0)``.

    So that very safe answers do not pay for unsafe ones. Limits and measured costs stay those of the problem. The
    source optimises by clipped policy gradients; as relabelling it is a reconstruction, and so is the dual rule.

    Raises:
        UsageError: a rule that reads the slope of the cost that is trained on, which is not the cost that is measured.
    """
    refuse_slopes("repo-dpo", rule.name)
    groups = [replace(group, costs=np.maximum(group.costs, 0)) for group in problem.groups]
    rectified = replace(problem, groups=groups)
    return c_dpo(rectified, rule=rule, start=start, loss=loss, labels=labels, temperature=temperature)


def rectified_gibbs(problem: FiniteProblem, multipliers: FloatArray, options: Options) -> FloatArray:  # noqa: ARG001
    """Return the Gibbs policy of ``reward - multipliers . max(costs, 0)``."""
    return log_policy(replace(problem, costs=np.maximum(problem.costs, 0)), multipliers)
