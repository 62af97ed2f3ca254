"""Best-of-n in closed form: draw n answers of the reference, keep one with the largest score."""

import numpy as np

from dualign.maths.finite import FloatArray

TIE = 1e-9
"""Scores that differ by less than this share of their range in a prompt are one score: units must not break ties."""


def log_best_of(log_reference: FloatArray, scores: FloatArray, n: int) -> FloatArray:
    """Return the log-probabilities ``[prompt, response]`` of best-of-n.

    The best of n draws has score v with probability ``F(v)^n - F(v-)^n``, F the reference's distribution of the score;
    of equal scores the first drawn is kept, which shares that probability as the reference does.

    Args:
        log_reference: ``[prompt, response]``, ``-inf`` at padding.
        scores: ``[prompt, response]``, higher is better; padding holds any finite number.
        n: number of draws, 1 or more; 1 is the reference.

    Raises:
        ValueError: ``n`` below 1.
    """
    if n < 1:
        raise ValueError(f"best-of-n needs n of 1 or more, got {n}")
    found = np.full_like(log_reference, -np.inf)
    for row, values in enumerate(scores):
        live = np.flatnonzero(np.isfinite(log_reference[row]))
        found[row, live] = _one_prompt(log_reference[row, live], values[live], n)
    return found


def _one_prompt(log_reference: FloatArray, scores: FloatArray, n: int) -> FloatArray:
    order = np.argsort(scores, kind="stable")
    apart = np.diff(scores[order]) > TIE * np.ptp(scores)
    level = np.concatenate([[0], np.cumsum(apart)])
    mass = np.full(level[-1] + 1, -np.inf)
    np.logaddexp.at(mass, level, log_reference[order])
    # The best level has F = 1 exactly; sums from below would leave it at 1 - 1e-16.
    below = np.minimum(np.logaddexp.accumulate(mass), 0.0)
    below[-1] = 0.0
    with np.errstate(divide="ignore"):
        # F^n - (F - m)^n = F^n (1 - (1 - m / F)^n), which loses no digits where the mass m is small.
        reached = np.log(-np.expm1(n * np.log1p(-np.exp(np.minimum(mass - below, 0.0)))))
    shares = np.empty_like(log_reference)
    shares[order] = (n * below + reached - mass)[level] + log_reference[order]
    return shares


def kl_bound(n: int) -> float:
    """Return ``log n - (n - 1) / n`` in nats, the largest KL of best-of-n; exact where no scores are equal.

    Beirami et al. 2024, arXiv 2401.01879.
    """
    return float(np.log(n) - (n - 1) / n)
