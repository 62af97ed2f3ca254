"""CAID: a one-shot start, then fits and dual steps in turn on the policy's own answers (arXiv 2505.19387)."""

from collections.abc import Generator

import numpy as np

from dualign.maths.dual import DualRule, DualState, Stopping
from dualign.maths.projected_newton import subgradient
from dualign.methods.c_dpo import relabelled
from dualign.methods.loop import dual_loop
from dualign.methods.offline import one_shot_multipliers
from dualign.methods.options import COUNT, NO_OPTIONS, NOT_NEGATIVE, Option, Options, filled
from dualign.protocols import Policy, Problem
from dualign.records import FloatArray, Iterate

OPTIONS = (
    Option(
        "step",
        0.0,
        "dual step in normalised units; 0: 4 beta / the largest squared range of costs in a group",
        within=NOT_NEGATIVE,
    ),
    Option("rounds", 12.0, "fits at the most", within=COUNT),
)


def caid(
    problem: Problem,
    *,
    rule: DualRule,
    start: FloatArray,
    loss: str = "dpo",
    labels: str = "soft",
    temperature: float = 1.0,
    options: Options = NO_OPTIONS,
) -> Generator[Iterate, None, DualState]:
    """Yield an iterate for every dual step, the first at the one-shot multipliers; each fit goes on from the last.

    The rule ``fixed`` keeps ``start``; any other is replaced by the method's own subgradient.
    """
    chosen = filled("caid", OPTIONS, options)
    previous: list[Policy] = []

    def fit(multipliers: FloatArray, name: str) -> Policy:
        policy = problem.backend.fit(
            problem.groups,
            objective=relabelled(multipliers, problem.beta, loss=loss, labels=labels, temperature=temperature),
            reference=problem.reference,
            start=previous[-1] if previous else None,
            seed=problem.seed,
            name=name,
        )
        previous.append(policy)
        return policy

    if rule.name == "fixed":
        return (yield from dual_loop(problem, rule, start, fit))
    step = float(chosen["step"]) or _largest_step(problem)
    own = subgradient(step=step, stopping=Stopping(budget=int(chosen["rounds"])))
    return (yield from dual_loop(problem, own, one_shot_multipliers(problem), fit))


def _largest_step(problem: Problem) -> float:
    """Return 1 / L, with which the dual of the groups never rises; 1 where no cost varies."""
    widest = max(float((np.ptp(group.costs, axis=0) ** 2).sum()) for group in problem.groups)
    return 4 * problem.beta / widest if widest > 0 else 1.0
