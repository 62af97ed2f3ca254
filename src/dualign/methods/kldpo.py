"""KLDPO: DPO on the worst pairs in a Kullback-Leibler ball around the data (Xu et al. 2025, arXiv 2502.01930)."""

from collections.abc import Generator

import numpy as np

from dualign.errors import UsageError
from dualign.maths.adversarial import clamped_weights, exponential_weights, solve_tau
from dualign.maths.dual import DualRule, DualState
from dualign.methods.options import NO_OPTIONS, NOT_NEGATIVE, POSITIVE, Option, Options
from dualign.methods.recipe import Parts, Recipe, on_arrays, pairwise, refuse_other, trained
from dualign.protocols import Problem
from dualign.records import FloatArray, Iterate


def parts(beta: float, options: Options) -> Parts:
    """Return DPO's loss with weights that grow with it: within an optimiser step, not within a micro-step.

    Raises:
        UsageError: rho with the form ``code``.
    """
    from dualign.maths.losses import dpo

    form, tau, rho = options["form"], float(options["tau"]), float(options["rho"])
    if rho > 0 and form == "code":
        raise UsageError("option rho of kldpo: only the form paper attains the worst case of a ball; give tau")

    def weights(losses: FloatArray, plain: FloatArray) -> FloatArray:
        if form == "code":
            return clamped_weights(losses, plain, tau=tau)
        if rho > 0:
            return ball_weights(losses, plain, rho=rho)
        return exponential_weights(losses, plain, tau=tau)

    return Parts(pairwise(dpo, beta), weigh=on_arrays(weights))


def ball_weights(losses: FloatArray, weights: FloatArray, *, rho: float) -> FloatArray:
    """Return the weights of the worst mean loss in the ball of radius ``rho`` nats, at the sum of ``weights``."""
    tau = solve_tau(losses, weights, rho=rho)
    if tau == 0:
        largest = losses[weights > 0].max()
        worst = np.where(losses == largest, weights, 0.0)
        return np.asarray(worst * (weights.sum() / worst.sum()))
    return exponential_weights(losses, weights, tau=tau)


KLDPO = Recipe(
    "kldpo",
    parts,
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


def kldpo(
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

    With soft labels on a finite world every pair is at its least loss under the Gibbs policy, so weights move nothing
    there: they matter where labels are drawn, wrong, or more than a policy can fit.

    Raises:
        UsageError: as ``recipe.trained``; another loss, or options out of range.
    """
    refuse_other(KLDPO.name, loss)
    return trained(problem, KLDPO, rule=rule, start=start, labels=labels, temperature=temperature, options=options)
