"""MODPO: DPO on help with a margin of the other objectives' scores (Zhou et al. 2023, arXiv 2310.03708)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dualign.maths.dual import DualRule, DualState
from dualign.methods.c_dpo import relabelled
from dualign.methods.loop import dual_loop
from dualign.methods.options import NO_OPTIONS, Option, Options, filled
from dualign.methods.phases import Labelling, cost_step
from dualign.protocols import Policy, Problem, Side
from dualign.records import FloatArray, Iterate

if TYPE_CHECKING:
    from torch import Tensor

COLUMN = "modpo_score"
"""Per-response column: the other objectives' weighted score, divided by the sum of their multipliers."""
OPTIONS = (
    Option(
        "margin",
        "explicit",
        "explicit: minus the costs as they are; implicit: log-ratios of a policy that learnt to avoid each cost",
        ("explicit", "implicit"),
    ),
)


def modpo(
    problem: Problem,
    *,
    rule: DualRule,
    start: FloatArray,
    loss: str = "dpo",
    labels: str = "soft",
    temperature: float = 1.0,
    options: Options = NO_OPTIONS,
) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier, whose weights are w1 / w0 = multiplier, w0 + w1 = 1.

    Pairs are labelled by the reward alone. The weights are the user's in the paper; here ``rule`` finds them, which
    is new. ``loss`` serves the policies of the implicit margin; the last fit has MODPO's own.
    """
    chosen = filled("modpo", OPTIONS, options)
    plain = relabelled(np.zeros_like(start), problem.beta, loss=loss, labels=labels, temperature=temperature)
    scores = _implicit(problem, Labelling(loss, labels, temperature)) if chosen["margin"] == "implicit" else None

    def fit(multipliers: FloatArray, name: str) -> Policy:
        total = float(multipliers.sum())
        first, second = 1 / (1 + total), total / (1 + total)
        shares = multipliers / total if total > 0 else multipliers
        known = [-group.costs for group in problem.groups] if scores is None else scores
        groups = [
            replace(group, columns={**group.columns, COLUMN: score @ shares})
            for group, score in zip(problem.groups, known, strict=True)
        ]

        def margin(preferred: Side, other: Side) -> Tensor:
            from dualign.maths.losses import modpo as pairwise

            sides = [(side.log_ratio, side.columns[COLUMN]) for side in (preferred, other)]
            # Labels at a temperature, and so the whole margin over it.
            return pairwise(sides[0], sides[1], beta=problem.beta * first, weights=(first * temperature, second))

        return problem.backend.fit(
            groups,
            objective=replace(plain, loss=margin, columns=(COLUMN,), name=f"modpo({total!r})-{labels}"),
            reference=problem.reference,
            start=None,
            seed=problem.seed,
            name=name,
        )

    return dual_loop(problem, rule, start, fit)


def _implicit(problem: Problem, labelling: Labelling) -> list[FloatArray]:
    """Return shape ``[response, constraint]`` a group: beta log-ratio of the policy fitted on each cost alone."""
    step, count = cost_step(problem, labelling), len(problem.limits)
    reference = problem.backend.log_probs(problem.reference, problem.groups)
    columns = []
    for i in range(count):
        policy = step(problem.reference, np.eye(count)[i], problem.beta, f"safe-{i}")
        found = problem.backend.log_probs(policy, problem.groups)
        columns.append([problem.beta * (own - known) for own, known in zip(found, reference, strict=True)])
    return [np.stack(values, axis=1) for values in zip(*columns, strict=True)]
