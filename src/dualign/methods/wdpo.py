"""WDPO: DPO with a penalty on how fast its loss changes with the input (Xu et al. 2025, arXiv 2502.01930)."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from dualign.maths.dual import DualRule, DualState
from dualign.methods.options import NO_OPTIONS, NOT_NEGATIVE, Option, Options
from dualign.methods.recipe import Parts, Recipe, pairwise, refuse_other, trained
from dualign.protocols import PairBatch, Problem
from dualign.records import FloatArray, Iterate

if TYPE_CHECKING:
    from torch import Tensor


def parts(beta: float, options: Options) -> Parts:
    """Return DPO's loss with the penalty; of the form ``paper`` its mean is over a micro-step."""
    from dualign.maths.losses import dpo, root_mean_square_penalty, squared_norm_penalty

    form, rho = options["form"], float(options["rho"])

    def penalty(batch: PairBatch, losses: Tensor) -> Tensor:
        assert batch.embedding_gradient is not None
        squared = batch.embedding_gradient(losses)
        if form == "code":
            return squared_norm_penalty(squared, rho=rho)
        return root_mean_square_penalty(squared, batch.weight, rho=rho)

    return Parts(pairwise(dpo, beta), penalty=penalty)


WDPO = Recipe(
    "wdpo",
    parts,
    (
        Option(
            "form", "paper", "paper: the root of the mean squared norm; code: as released, no root", ("paper", "code")
        ),
        Option(
            "rho",
            0.01,
            "radius of the ball; the norm carries beta, so a smaller beta needs a larger rho",
            within=NOT_NEGATIVE,
        ),
    ),
)


def wdpo(
    problem: Problem,
    *,
    rule: DualRule,
    start: FloatArray,
    loss: str = "dpo",
    labels: str = "soft",
    temperature: float = 1.0,
    options: Options = NO_OPTIONS,
) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier; the paper's method is the multiplier 0.

    The loss whose gradient is penalised is that of the pair under its label. With soft labels on a finite world both it
    and the penalty are least at the Gibbs policy, so the ball moves nothing there: it matters where labels are drawn,
    or more than a policy can fit.

    A model takes two derivatives of every pair, each in rows of its own: about four times the work of DPO.

    Raises:
        UsageError: as ``recipe.trained``; another loss, or a negative rho.
    """
    refuse_other(WDPO.name, loss)
    return trained(problem, WDPO, rule=rule, start=start, labels=labels, temperature=temperature, options=options)
