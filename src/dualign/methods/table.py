"""The methods that can be chosen, one row each; nothing else in the package knows a method by name."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from dualign.backends.protocol import Problem
from dualign.maths.dual import DualRule, DualState
from dualign.methods.c_dpo import c_dpo
from dualign.methods.dpo import dpo
from dualign.methods.fixed import fixed
from dualign.records import FloatArray, Iterate


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
