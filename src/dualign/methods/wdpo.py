"""WDPO: DPO with a penalty on how fast its loss changes with the input (Xu et al. 2025, arXiv 2502.01930).

The paper's method is the multiplier 0. The loss whose gradient is penalised is that of the pair under its label. With
soft labels on a finite world both it and the penalty are least at the Gibbs policy, so the ball moves nothing there: it
matters where labels are drawn, or more than a policy can fit. A model takes two derivatives of every pair, each in rows
of its own: about four times the work of DPO.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dualign.methods.options import NOT_NEGATIVE, Option, Options
from dualign.methods.recipe import Recipe
from dualign.protocols import Objective, PairBatch

if TYPE_CHECKING:
    from torch import Tensor


def wdpo(plain: Objective, options: Options) -> Objective:
    """Return DPO with the penalty; of the form ``paper`` its mean is over a micro-step."""
    from dualign.maths.losses import root_mean_square_penalty, squared_norm_penalty

    form, rho = options["form"], float(options["rho"])

    def penalty(batch: PairBatch, losses: Tensor) -> Tensor:
        assert batch.embedding_gradient is not None
        squared = batch.embedding_gradient(losses)
        if form == "code":
            return squared_norm_penalty(squared, rho=rho)
        return root_mean_square_penalty(squared, batch.weight, rho=rho)

    return replace(plain, penalty=penalty)


WDPO = Recipe(
    "wdpo",
    wdpo,
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
