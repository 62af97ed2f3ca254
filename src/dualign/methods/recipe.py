"""Losses by name: what each makes of DPO's objective, and the dual loop around it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dualign.errors import UsageError
from dualign.maths.dual import DualState
from dualign.methods.loop import dual_loop, fitted
from dualign.methods.options import Option, Options, Range, Settings, filled, unknown
from dualign.protocols import Objective, PairLoss, Policy, Problem, Side
from dualign.records import FloatArray, Iterate

if TYPE_CHECKING:
    from torch import Tensor


NEWTON = ("newton", "projected_newton")
"""Dual rules that read the slope of a Gibbs policy."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A loss by its name."""

    name: str
    build: Callable[[Objective, Options], Objective]
    """(DPO's objective, options) -> that of this loss; raises ``UsageError`` for options that make none."""
    options: tuple[Option, ...] = ()
    newton: bool = False
    """Whether its fits may serve dual rules that read the slope of a Gibbs policy."""
    prepare: Callable[[Problem], Problem] = lambda problem: problem
    """Adds the per-response columns that the objective names to the problem's groups."""

    def objective(self, multipliers: FloatArray, beta: float, settings: Settings) -> Objective:
        """Return the objective whose labels prefer the larger ``reward - multipliers . costs``.

        ``beta`` is that of the problem. Labels at a temperature and a loss with ``beta / temperature`` have the policy
        of ``beta`` as their minimum, so the temperature moves how saturated labels are, and not the policy that is
        sought.

        Raises:
            UsageError: an unknown label mode, a temperature that is not positive, options that the loss refuses.
        """
        # Here, not on top: the table of methods is printed without torch.
        from dualign.maths.losses import LABELS, dpo

        labels, temperature = settings.labels, settings.temperature
        if labels not in LABELS:
            raise UsageError(unknown("labels", labels, LABELS))
        if not (temperature > 0 and np.isfinite(temperature)):
            raise UsageError(f"temperature: must be a number above 0, got {temperature}")
        options = filled(self.name, self.options, settings.options)
        said = ",".join(f"{name}={value}" for name, value in options.items())
        plain = Objective(
            loss=pairwise(dpo, beta / temperature),
            labels=LABELS[labels],
            multipliers=multipliers,
            beta=beta / temperature,
            temperature=temperature,
            name=f"{self.name}({said})-{labels}" if said else f"{self.name}-{labels}",
        )
        return self.build(plain, options)

    def run(self, problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
        """Return the generator of one iterate for every multiplier that the rule asks for.

        Every round relabels the pairs by ``reward - multipliers . costs`` and fits a policy on them, from the fixed
        reference.

        Raises:
            UsageError: as ``objective``; a rule that reads the slope of a Gibbs policy, for a loss that has none.
        """
        if not self.newton:
            refuse_slopes(self.name, settings.rule.name)
        self.objective(settings.start, problem.beta, settings)
        prepared = self.prepare(problem)

        def fit(multipliers: FloatArray, name: str) -> Policy:
            return fitted(prepared, self.objective(multipliers, prepared.beta, settings), name)

        return dual_loop(prepared, settings, fit)


def pairwise(loss: Callable[..., Tensor], beta: float) -> PairLoss:
    """Return ``loss`` as a function of two sides."""
    return lambda preferred, other: loss(preferred.log_ratio, other.log_ratio, beta=beta)


def on_column(loss: Callable[..., Tensor], column: str, **given: Any) -> PairLoss:
    """Return ``loss``, which reads the log-ratio and the ``column`` of either side, as a function of two sides."""

    def read(side: Side) -> tuple[Tensor, Tensor]:
        return side.log_ratio, side.columns[column]

    return lambda preferred, other: loss(read(preferred), read(other), **given)


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


def _ipo(plain: Objective, _options: Options) -> Objective:
    from dualign.maths.losses import ipo

    return replace(plain, loss=pairwise(ipo, plain.beta))


DPO = Recipe("dpo", lambda plain, _: plain, newton=True)
IPO = Recipe("ipo", _ipo)

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
    plain_losses = {recipe.name: recipe for recipe in (DPO, IPO)}
    if loss not in plain_losses:
        raise UsageError(unknown("loss with smoothed labels", loss, plain_losses))

    def build(plain: Objective, options: Options) -> Objective:
        from dualign.maths.losses import smoothed

        sure = plain_losses[loss].build(plain, options).loss
        return replace(plain, loss=smoothed(sure, smoothing=float(options["smoothing"])))

    return Recipe(f"conservative-{loss}", build, (SMOOTHING,))
