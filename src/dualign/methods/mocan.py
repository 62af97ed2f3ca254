"""MoCAN: the multipliers from scored reference responses, one fit, one look (Huang et al. 2024, arXiv 2405.19544)."""

from collections.abc import Generator

from dualign.backends.protocol import Problem
from dualign.maths.dual import DualRule, DualState, fixed
from dualign.methods.c_dpo import c_dpo
from dualign.methods.offline import one_shot_multipliers, verified
from dualign.methods.options import NO_OPTIONS, Options
from dualign.records import FloatArray, Iterate


def mocan(
    problem: Problem,
    *,
    rule: DualRule,
    start: FloatArray,
    loss: str = "dpo",
    labels: str = "soft",
    temperature: float = 1.0,
    options: Options = NO_OPTIONS,
) -> Generator[Iterate, None, DualState]:
    """Yield the one iterate at the multipliers that minimise the dual of the groups; return whether it held.

    The rule ``fixed`` keeps ``start`` instead; any other is ignored. Looking at the fitted policy's own answers
    is ours: the original stops at the fit. Where no reweighting of the groups meets the limits, the policy of a large
    multiplier is fitted and looked at all the same.
    """
    found = start if rule.name == "fixed" else one_shot_multipliers(problem)
    run = c_dpo(
        problem, rule=fixed(found), start=found, loss=loss, labels=labels, temperature=temperature, options=options
    )
    return (yield from verified(run))
