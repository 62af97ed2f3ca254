"""SACPO: two preference steps, one on help and one on safety (Wachi et al. 2024, arXiv 2404.11049)."""

from collections.abc import Generator

from dualign.errors import UsageError
from dualign.maths.dual import DualRule, DualState
from dualign.methods.loop import dual_loop
from dualign.methods.options import NO_OPTIONS, Option, Options, Range, filled
from dualign.methods.phases import LEAST_MULTIPLIER, Labelling, helpful_then_safe, safe_then_helpful
from dualign.protocols import Merges, Policy, Problem
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


P_SACPO_OPTIONS = (
    Option(
        "q", 0.5, "share of SACPO's policy in the merge, above 0 and up to 1", within=Range(0, 1, low_included=False)
    ),
)


def p_sacpo(
    problem: Problem,
    *,
    rule: DualRule,
    start: FloatArray,
    loss: str = "dpo",
    labels: str = "soft",
    temperature: float = 1.0,
    options: Options = NO_OPTIONS,
) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier ``q lambda``, SACPO's own being lambda.

    Merged are log-probabilities, which is exact; the paper merges weights, which is so for log-linear models alone.

    Raises:
        UsageError: an option out of range, a backend that cannot merge.
    """
    share, backend = float(filled("p-sacpo", P_SACPO_OPTIONS, options)["q"]), problem.backend
    if not isinstance(backend, Merges):
        raise UsageError("method.name: needs to merge policies, which this backend cannot; finite worlds can")
    steps = helpful_then_safe(problem, Labelling(loss, labels, temperature))
    helpful: list[Policy] = []

    def fit(multipliers: FloatArray, name: str) -> Policy:
        if not helpful:
            helpful.append(steps(0 * multipliers, f"{name}-first"))
        if multipliers.sum() < LEAST_MULTIPLIER:
            return helpful[0]
        return backend.merge(helpful[0], steps(multipliers / share, f"{name}-safe"), share=share, name=name)

    return dual_loop(problem, rule, start, fit)
