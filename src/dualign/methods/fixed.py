"""C-DPO at one hand-picked multiplier: what people do today, and the arm that a search is compared with."""

from collections.abc import Generator

from dualign.backends.protocol import Problem
from dualign.maths import dual
from dualign.methods.c_dpo import c_dpo
from dualign.methods.options import NO_OPTIONS, Options
from dualign.records import FloatArray, Iterate


def fixed(
    problem: Problem,
    *,
    rule: dual.DualRule,  # noqa: ARG001 (every method of the table is called alike)
    start: FloatArray,
    loss: str = "dpo",
    labels: str = "soft",
    temperature: float = 1.0,
    options: Options = NO_OPTIONS,
) -> Generator[Iterate, None, dual.DualState]:
    """Yield the one iterate at the multipliers ``start``; limits are measured and never acted on."""
    rule = dual.fixed(start)
    return c_dpo(problem, rule=rule, start=start, loss=loss, labels=labels, temperature=temperature, options=options)
