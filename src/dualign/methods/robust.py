"""DPO whose pairs are weighted or penalised by their loss: KLDPO, Dr. DPO and WDPO.

KLDPO (Xu et al. 2025, arXiv 2502.01930) looks at the worst pairs in a Kullback-Leibler ball around the data; Dr. DPO
(Wu et al. 2024, arXiv 2407.07880) does the opposite and trusts the pairs that it fits. Both weigh pairs by the
exponential of their loss, within an optimiser step. WDPO (Xu et al. 2025) has a penalty on how fast the loss changes
with the input; the loss is that of the pair under its label. A model takes two derivatives of every pair for it, each
in rows of its own: about four times the work of DPO. The papers' methods are the multiplier 0. With soft labels on a
finite world loss and penalty are least at the Gibbs policy, so nothing moves there: they matter where labels are drawn,
wrong, or more than a policy can fit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dualign.errors import UsageError
from dualign.maths.adversarial import clamped_weights, exponential_weights, solve_tau
from dualign.methods.options import NOT_NEGATIVE, POSITIVE, Option, Options
from dualign.methods.recipe import Recipe, on_arrays
from dualign.protocols import Objective, PairBatch
from dualign.records import FloatArray

if TYPE_CHECKING:
    from torch import Tensor


def kldpo(plain: Objective, options: Options) -> Objective:
    """Return DPO with weights that grow with the loss.

    Raises:
        UsageError: rho with the form ``code``.
    """
    form, tau, rho = options["form"], float(options["tau"]), float(options["rho"])
    if rho > 0 and form == "code":
        raise UsageError("option rho of kldpo: only the form paper attains the worst case of a ball; give tau")

    def weights(losses: FloatArray, plain: FloatArray) -> FloatArray:
        if form == "code":
            return clamped_weights(losses, plain, tau=tau)
        if rho > 0:
            return ball_weights(losses, plain, rho=rho)
        return exponential_weights(losses, plain, tau=tau)

    return replace(plain, weigh=on_arrays(weights))


def ball_weights(losses: FloatArray, weights: FloatArray, *, rho: float) -> FloatArray:
    """Return the weights of the worst mean loss in the ball of radius ``rho`` nats, at the sum of ``weights``."""
    tau = solve_tau(losses, weights, rho=rho)
    if tau == 0:
        largest = losses[weights > 0].max()
        worst = np.where(losses == largest, weights, 0.0)
        return np.asarray(worst * (weights.sum() / worst.sum()))
    return exponential_weights(losses, weights, tau=tau)


def dr_dpo(plain: Objective, options: Options) -> Objective:
    """Return DPO with weights that fall with the loss: the gradient of ``-width log mean exp(-loss / width)``."""
    width = float(options["width"])
    return replace(plain, weigh=on_arrays(lambda losses, weights: exponential_weights(losses, weights, tau=-width)))


KLDPO = Recipe(
    "kldpo",
    kldpo,
    (
        Option(
            "form",
            "paper",
            "paper: weights sum to 1; code: as released, clamped at 10 and not scaled",
            ("paper", "code"),
        ),
        Option(
            "tau",
            1.0,
            "width of the weights exp(loss / tau); smaller looks at the largest losses alone",
            within=POSITIVE,
        ),
        Option(
            "rho",
            0.0,
            "radius of the ball in nats, from which tau is solved at every step; 0: tau is given",
            within=NOT_NEGATIVE,
        ),
    ),
)
DR_DPO = Recipe(
    "dr-dpo",
    dr_dpo,
    (Option("width", 1.0, "b of the weights exp(-loss / b); smaller trusts fewer pairs", within=POSITIVE),),
)


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
