"""What a loss is to a method: its parts as an objective takes them, the options it has, and the loop around it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dualign.errors import UsageError
from dualign.maths.dual import DualRule, DualState
from dualign.methods.loop import dual_loop
from dualign.methods.options import NO_OPTIONS, Option, Options, Range, filled, unknown
from dualign.protocols import Objective, PairBatch, PairLoss, Policy, Problem
from dualign.records import FloatArray, Iterate

if TYPE_CHECKING:
    from torch import Tensor


NEWTON = ("newton", "projected_newton")
"""Dual rules that read the slope of a Gibbs policy."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What an objective is made of besides labels and multipliers; the fields are those of ``Objective``."""

    loss: PairLoss
    weigh: Callable[[Tensor, Tensor], Tensor] | None = None
    penalty: Callable[[PairBatch, Tensor], Tensor] | None = None
    columns: tuple[str, ...] = ()


def unprepared(problem: Problem) -> Problem:
    """Return ``problem`` as it is."""
    return problem


@dataclass(frozen=True, slots=True)
class Recipe:
    """A loss by its name."""

    name: str
    parts: Callable[[float, Options], Parts]
    """(the loss's own beta, options) -> parts; raises ``UsageError`` for options that make none."""
    options: tuple[Option, ...] = ()
    newton: bool = False
    """Whether its fits may serve dual rules that read the slope of a Gibbs policy."""
    prepare: Callable[[Problem], Problem] = unprepared
    """Adds the columns that the loss reads to the problem's groups."""


def pairwise(loss: Callable[..., Tensor], beta: float) -> PairLoss:
    """Return ``loss`` as a function of two sides."""
    return lambda preferred, other: loss(preferred.log_ratio, other.log_ratio, beta=beta)


def on_arrays(weights: Callable[[FloatArray, FloatArray], FloatArray]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the weights of a step, a function of losses and weights in float64, as a function of tensors.

    Losses that are not finite make weights that are not, for the backend to refuse.
    """
    import torch

    def weigh(losses: Tensor, plain: Tensor) -> Tensor:
        if not bool(torch.isfinite(losses).all()):
            return torch.full_like(plain, torch.nan)
        made = weights(losses.double().cpu().numpy(), plain.double().cpu().numpy())
        return torch.from_numpy(made).to(plain)

    return weigh


def objective(
    recipe: Recipe, multipliers: FloatArray, beta: float, *, labels: str, temperature: float, options: Options
) -> Objective:
    """Return the objective whose labels prefer the larger ``reward - multipliers . costs``.

    ``beta`` is that of the problem. Labels at ``temperature`` and a loss with ``beta / temperature`` have the policy of
    ``beta`` as their minimum, so the temperature moves how saturated labels are, and not the policy that is sought.

    Raises:
        UsageError: an unknown label mode, a temperature that is not positive, options that the loss refuses.
    """
    # Here, not on top: the table of methods is printed without torch.
    from dualign.maths.losses import LABELS

    if labels not in LABELS:
        raise UsageError(unknown("labels", labels, LABELS))
    if not (temperature > 0 and np.isfinite(temperature)):
        raise UsageError(f"temperature: must be a number above 0, got {temperature}")
    coefficient = beta / temperature
    parts = recipe.parts(coefficient, options)
    settings = ",".join(f"{name}={value}" for name, value in options.items())
    return Objective(
        loss=parts.loss,
        labels=LABELS[labels],
        multipliers=multipliers,
        beta=coefficient,
        temperature=temperature,
        weigh=parts.weigh,
        penalty=parts.penalty,
        columns=parts.columns,
        name=f"{recipe.name}({settings})-{labels}" if settings else f"{recipe.name}-{labels}",
    )


def trained(
    problem: Problem,
    recipe: Recipe,
    *,
    rule: DualRule,
    start: FloatArray,
    labels: str,
    temperature: float,
    options: Options = NO_OPTIONS,
) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier that ``rule`` asks for.

    Every round relabels the pairs by ``reward - multipliers . costs`` and fits a policy on them, by the loss of
    ``recipe``, from the fixed reference. ``options`` not named have the recipe's defaults.

    Raises:
        UsageError: as ``objective``; a rule that reads the slope of a Gibbs policy, for a loss that has none.
    """
    chosen = filled(recipe.name, recipe.options, options)
    if not recipe.newton:
        refuse_slopes(recipe.name, rule.name)
    objective(recipe, start, problem.beta, labels=labels, temperature=temperature, options=chosen)
    prepared = recipe.prepare(problem)

    def fit(multipliers: FloatArray, name: str) -> Policy:
        return prepared.backend.fit(
            prepared.groups,
            objective=objective(
                recipe, multipliers, prepared.beta, labels=labels, temperature=temperature, options=chosen
            ),
            reference=prepared.reference,
            start=None,
            seed=prepared.seed,
            name=name,
        )

    return dual_loop(prepared, rule, start, fit)


def refuse_slopes(name: str, rule: str) -> None:
    """Check that a dual rule can serve policies that are no Gibbs policies.

    Raises:
        UsageError: it reads the slope of a Gibbs policy.
    """
    if rule in NEWTON:
        raise UsageError(
            f"{name}: the dual rule {rule} reads the slope of a Gibbs policy, which its policies are not; "
            "use bracket (one limit) or gradient"
        )


def refuse_other(name: str, loss: str) -> None:
    """Check that no loss is asked for of a method that has its own, or none.

    Raises:
        UsageError: one is.
    """
    if loss not in ("dpo", name):
        raise UsageError(f"loss: {name} has its own, {loss!r} was given; leave it out")


def _plain(name: str, *, newton: bool) -> Recipe:
    def parts(beta: float, options: Options) -> Parts:  # noqa: ARG001
        from dualign.maths.losses import LOSSES

        return Parts(pairwise(LOSSES[name], beta))

    return Recipe(name, parts, newton=newton)


DPO = _plain("dpo", newton=True)
IPO = _plain("ipo", newton=False)

SMOOTHING = Option(
    "smoothing",
    0.1,
    "share of the labels that is held to be wrong, from 0 to below 0.5",
    within=Range(0, 0.5, high_included=False),
)


def conservative(loss: str) -> Recipe:
    """Return ``loss`` with smoothed labels; of ``dpo`` it is conservative DPO (Mitchell 2023, a note).

    Raises:
        UsageError: no plain loss has the name.
    """
    if loss not in (DPO.name, IPO.name):
        raise UsageError(unknown("loss with smoothed labels", loss, (DPO.name, IPO.name)))

    def parts(beta: float, options: Options) -> Parts:
        from dualign.maths.losses import LOSSES, smoothed

        smoothing = float(options["smoothing"])
        with_beta = partial(LOSSES[loss], beta=beta)
        expected = smoothed(with_beta, smoothing=smoothing)
        return Parts(lambda preferred, other: expected(preferred.log_ratio, other.log_ratio))

    return Recipe(f"conservative-{loss}", parts, (SMOOTHING,))
