"""The mean loss in its worst case over a Kullback-Leibler ball around the data, and the weights that attain it.

With P0 the pairs' own weights and any tau > 0 (Xu et al. 2025, arXiv 2502.01930, Lemma 12)

    sup_{KL(P || P0) <= rho} E_P[loss] = min_{tau > 0}  tau rho + tau log E_P0[exp(loss / tau)]

and at the minimising tau the weights P ~ P0 exp(loss / tau) attain it, with KL(P || P0) = rho. A tau that is given
instead of solved is a ball whose radius follows the losses. The same formula at -tau is the best case.
"""

import numpy as np

from dualign.maths.finite import FloatArray

ROUNDING = 64 * np.finfo(np.float64).eps
"""Relative spread of losses that are equal."""
LONGEST_SEARCH = 40.0
"""``solve_tau`` looks no further below the spread of the losses than by the exponential of this."""
LARGEST_FACTOR = 10.0
"""Most that a clamped weight grows by, as in the authors' program."""


def exponential_weights(losses: FloatArray, weights: FloatArray, *, tau: float) -> FloatArray:
    """Return ``weights * exp(losses / tau)``, scaled to the sum of ``weights``; all of shape ``[pair]``.

    KLDPO, Xu et al. 2025, Algorithm 2: as constants on the losses they give the gradient of ``log_mean_exp``. A
    negative ``tau`` prefers the small losses (Dr. DPO, Wu et al. 2024, arXiv 2407.07880).
    """
    exponents = np.where(weights > 0, losses / tau, -np.inf)
    raised = weights * np.exp(exponents - exponents.max())
    tilted: FloatArray = raised * (weights.sum() / raised.sum())
    return tilted


def clamped_weights(
    losses: FloatArray, weights: FloatArray, *, tau: float, largest: float = LARGEST_FACTOR
) -> FloatArray:
    """Return ``weights * min(exp((losses - mean) / tau), largest)``, not scaled; all of shape ``[pair]``.

    What the authors' released KLDPO computes. Their sum is that of ``weights`` or more (Jensen) until the clamp acts,
    so a small ``tau`` raises the learning rate.
    """
    mean = weights @ losses / weights.sum()
    factors: FloatArray = np.exp(np.minimum((losses - mean) / tau, np.log(largest)))
    return weights * factors


def log_mean_exp(losses: FloatArray, weights: FloatArray, *, tau: float) -> float:
    """Return ``tau log E[exp(losses / tau)]``: above the mean for a positive ``tau``, below it for a negative one."""
    mean = weights @ losses / weights.sum()
    exponents = np.where(weights > 0, (losses - mean) / tau, -np.inf)
    peak = exponents.max()
    share = weights @ np.exp(exponents - peak) / weights.sum()
    return float(mean + tau * (peak + np.log(share)))


def divergence(losses: FloatArray, weights: FloatArray, *, tau: float) -> float:
    """Return KL(P || P0) in nats of P = ``exponential_weights``; it falls as ``tau`` > 0 grows."""
    tilted = exponential_weights(losses, weights, tau=tau) / weights.sum()
    return max(0.0, (float(tilted @ losses) - log_mean_exp(losses, weights, tau=tau)) / tau)


def dual_value(losses: FloatArray, weights: FloatArray, *, tau: float, rho: float) -> float:
    """Return ``tau rho + tau log E[exp(losses / tau)]``, at least the worst mean loss of the ball of radius ``rho``."""
    return tau * rho + log_mean_exp(losses, weights, tau=tau)


def solve_tau(losses: FloatArray, weights: FloatArray, *, rho: float) -> float:
    """Return the ``tau`` at which KL(P || P0) = ``rho`` nats: the minimiser of ``dual_value``.

    Infinity where ``rho`` is 0 or all losses are equal up to rounding: no weights are worse than P0. 0 where the ball
    holds the pairs of the largest loss alone: they are its worst case.
    """
    from scipy.optimize import brentq

    live = losses[weights > 0]
    spread = float(np.ptp(live))
    # Losses that only rounding tells apart are equal: their KL is noise, of either sign of the excess below.
    if rho <= 0 or spread <= ROUNDING * float(np.abs(live).max()):
        return float("inf")
    at_peak = float(weights[(weights > 0) & (losses == live.max())].sum() / weights.sum())
    # No tau reaches the last digit of the largest KL.
    if rho >= -np.log(at_peak) * (1 - 1e-9):
        return 0.0

    def excess(log_tau: float) -> float:
        return float(np.log(max(divergence(losses, weights, tau=np.exp(log_tau)), np.finfo(float).tiny) / rho))

    # KL <= spread^2 / (8 tau^2) (Hoeffding): at this tau it is rho at the most.
    upper = np.log(spread / np.sqrt(8 * rho))
    lower = upper - 1
    while excess(lower) < 0:
        # Losses this close to the largest are the largest, to rounding.
        if lower < np.log(spread) - LONGEST_SEARCH:
            return 0.0
        lower -= 1
    return float(np.exp(brentq(excess, lower, upper, xtol=1e-12)))
