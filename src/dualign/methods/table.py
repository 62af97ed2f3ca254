"""The methods that can be chosen, one row each; nothing else in the package knows a method by name."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from dualign.backends.protocol import Problem
from dualign.maths.dual import DualRule, DualState
from dualign.maths.finite import FiniteProblem, log_policy
from dualign.methods.c_dpo import c_dpo
from dualign.methods.dpo import dpo
from dualign.methods.fixed import fixed
from dualign.methods.options import NO_OPTIONS, Option, Options
from dualign.records import FloatArray, Iterate

Target = Callable[[FiniteProblem, FloatArray, Options], FloatArray]
"""(problem, multipliers, options) -> log-probabilities ``[prompt, response]`` of what the method converges to."""
Parameters = Callable[[FloatArray, float, Options], Mapping[str, float]]
"""(multipliers, beta, options), in C-DPO terms -> the method's own parameters."""


def gibbs(problem: FiniteProblem, multipliers: FloatArray, options: Options) -> FloatArray:  # noqa: ARG001
    """Return the Gibbs policy of the multipliers: what most methods aim at."""
    return log_policy(problem, multipliers)


def c_dpo_parameters(multipliers: FloatArray, beta: float, options: Options) -> Mapping[str, float]:  # noqa: ARG001
    """Return nothing: the method's terms are those of C-DPO."""
    return {}


class Run(Protocol):
    """How every method is called; one that has no use for an argument ignores it and says so."""

    def __call__(
        self,
        problem: Problem,
        *,
        rule: DualRule,
        start: FloatArray,
        loss: str = "dpo",
        labels: str = "soft",
        temperature: float = 1.0,
        options: Options = NO_OPTIONS,
    ) -> Generator[Iterate, None, DualState]:
        """Yield an iterate for every policy that was fitted; return the dual's last state."""


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table."""

    name: str
    run: Run
    source: str
    """Authors, year, arXiv number."""
    needs: tuple[str, ...]
    """What must be there before it runs."""
    weight: Literal["dual rule", "given", "none"]
    """Where the multipliers come from: found by the dual rule, picked by hand, or not used at all."""
    reconstruction: bool
    """Whether the method itself, not only its stopping, fills a gap that its source leaves."""
    note: str
    options: tuple[Option, ...] = ()
    """Settings of its own."""
    target: Target = gibbs
    """Its closed form on a finite world with soft labels and the loss ``dpo``; NaN where it has none."""
    parameters: Parameters = c_dpo_parameters
    """Its own names for multipliers and beta."""


METHODS: Mapping[str, Method] = {
    row.name: row
    for row in (
        Method(
            "c-dpo",
            c_dpo,
            "Liu, Sun & Zheng 2024, arXiv 2403.02475",
            ("reward", "costs", "limits"),
            "dual rule",
            False,
            "rule gradient is the paper's loop; projection, stop, soft labels and the other rules are reconstructions",
        ),
        Method(
            "dpo",
            dpo,
            "Rafailov et al. 2023, arXiv 2305.18290",
            ("reward",),
            "none",
            False,
            "C-DPO at multiplier 0; limits are measured and ignored",
        ),
        Method(
            "fixed",
            fixed,
            "C-DPO at one multiplier",
            ("reward", "costs", "multiplier"),
            "given",
            False,
            "one policy at a hand-picked multiplier; without one, the dual rule finds it",
        ),
    )
}
