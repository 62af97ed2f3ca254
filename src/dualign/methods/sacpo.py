"""SACPO: two preference steps, one on help and one on safety (Wachi et al. 2024, arXiv 2404.11049)."""

from collections.abc import Generator

from dualign.backends.protocol import Problem
from dualign.maths.dual import DualRule, DualState
from dualign.methods.loop import dual_loop
from dualign.methods.options import NO_OPTIONS, Option, Options, filled
from dualign.methods.phases import Labelling, helpful_then_safe, safe_then_helpful
from dualign.records import FloatArray, Iterate

ORDERS = {"helpful-first": helpful_then_safe, "safe-first": safe_then_helpful}
OPTIONS = (Option("order", "helpful-first", "which preferences the first step learns from", tuple(ORDERS)),)


def sacpo(
    problem: Problem,
    *,
    rule: DualRule,
    start: FloatArray,
    loss: str = "dpo",
    labels: str = "soft",
    temperature: float = 1.0,
    options: Options = NO_OPTIONS,
) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier; the second step starts at the first and refers to it.

    The paper picks beta' = beta / multiplier by hand; here ``rule`` finds it, which is new.
    """
    chosen = filled("sacpo", OPTIONS, options)
    fit = ORDERS[str(chosen["order"])](problem, Labelling(loss, labels, temperature))
    return dual_loop(problem, rule, start, fit)
