"""What policy-gradient methods under limits converge to, and how they move their multipliers: no torch, no tokens.

Safe RLHF (Dai et al. 2023, PPO-Lagrangian) divides its advantage by ``1 + multiplier`` and keeps the KL coefficient
kappa, so its policy is the Gibbs policy of ``beta = kappa (1 + multiplier)``. HC-RLHF (arXiv 2506.08266) divides by
nothing and raises the cost to an upper bound of its mean. Losses by token are in ``losses``.
"""

import math
from dataclasses import replace

import numpy as np

from dualign.maths.exact import FiniteProblem, FloatArray, log_policy

SETTLED = 1e-10
"""Largest move of a log-probability at which the fixed point of an inflated cost counts as reached."""
LONGEST = 5000
"""Steps towards it."""


def lagrangian_policy(problem: FiniteProblem, multipliers: FloatArray, *, kl: float) -> FloatArray:
    """Return the log-probabilities ``[prompt, response]`` of Safe RLHF's policy, whatever the problem's beta.

    It maximises ``E[(reward - multipliers . costs) / (1 + sum of multipliers)] - kl KL``. The paper has one multiplier;
    the sum over several is our extension.
    """
    return log_policy(replace(problem, beta=kl * float(1 + np.sum(multipliers))), multipliers)


def mirror_step(log_probs: FloatArray, log_reference: FloatArray, gain: FloatArray, *, step: float) -> FloatArray:
    """Return the policy after one exact natural-gradient step, as log-probabilities ``[prompt, response]``.

    ``log pi <- (1 - step) log pi + step (log reference + gain) - log Z``, ``gain`` being the scaled score over kappa:
    the step of size ``step / kappa`` along the natural gradient of ``E[score] - kappa KL(pi || reference)`` for a
    softmax over a table (Kakade 2001; with its KL term Cen et al. 2021). 1 arrives at once for a fixed gain.
    """
    support = np.isfinite(log_reference)
    aim = np.where(support, log_reference + gain, 0.0)
    mixed = np.where(support, (1 - step) * np.where(support, log_probs, 0.0) + step * aim, -np.inf)
    return np.asarray(mixed - np.logaddexp.reduce(mixed, axis=1, keepdims=True))


def multiplier_step(
    multipliers: FloatArray, violation: FloatArray, *, rate: FloatArray, largest: FloatArray
) -> FloatArray:
    """Return ``min(multiplier exp(rate multiplier violation), largest)``, which never reaches 0 and stalls near it.

    One SGD step on theta = log multiplier along ``multiplier (cost - limit)`` (Safe RLHF, eq. 31, and its code).
    """
    theta = np.log(multipliers) + rate * multipliers * violation
    return np.asarray(np.exp(np.minimum(theta, np.log(largest))))


def inflation_factor(delta: float, *, candidates: int, safety: int) -> float:
    """Return ``q = t / sqrt(candidates) + t / sqrt(safety)``, t the 1 - delta quantiles with n - 1 degrees.

    HC-RLHF's code; its dual and its actor use two different ``candidates``, which one function forbids.

    Args:
        delta: one minus the confidence of the safety test.
        candidates: number of independent costs behind the estimate that is inflated.
        safety: number of prompts of the safety test.

    Raises:
        ValueError: fewer than two costs, or a ``delta`` outside (0, 1).
    """
    if min(candidates, safety) < 2 or not 0 < delta < 1:
        raise ValueError(f"needs two costs and a delta in (0, 1), got {candidates}, {safety} and {delta}")
    from scipy.special import stdtrit

    return float(sum(stdtrit(n - 1, 1 - delta) / np.sqrt(n) for n in (candidates, safety)))


def inflated_costs(costs: FloatArray, mean: FloatArray, deviation: FloatArray, *, inflation: float) -> FloatArray:
    """Return ``cost + inflation (cost^2 - 2 cost mean) / (2 deviation)``, shape of ``costs`` ``[..., constraint]``.

    Up to a constant the influence function of ``mean + inflation deviation``: raising a policy's expected inflated cost
    raises that bound at the same rate. A cost that never varies is left as it is.
    """
    width = np.where(deviation > 0, 2 * deviation, np.inf)
    return np.asarray(costs + inflation * (costs**2 - 2 * costs * mean) / width)


def cost_moments(problem: FiniteProblem, log_probs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return mean and SD of each cost over all answers to all prompts, both ``[constraint]``."""
    mass = problem.prompt_weights[:, None] * np.exp(log_probs)
    mean = np.einsum("jk,jki->i", mass, problem.costs)
    variance = np.einsum("jk,jki->i", mass, (problem.costs - mean) ** 2)
    return mean, np.sqrt(variance)


def on_policy_scores(
    problem: FiniteProblem, log_probs: FloatArray, multipliers: FloatArray, *, inflation: float
) -> FloatArray:
    """Return ``reward - multipliers . inflated costs``, shape ``[prompt, response]``, at the policy ``log_probs``."""
    mean, deviation = cost_moments(problem, log_probs)
    costs = inflated_costs(problem.costs, mean, deviation, inflation=inflation)
    return np.asarray(problem.reward - costs @ multipliers)


def inflated_policy(problem: FiniteProblem, multipliers: FloatArray, *, inflation: float) -> FloatArray:
    """Return the policy that is the Gibbs policy of its own inflated costs, found by half steps from the reference.

    With inflation 0 it is the Gibbs policy of ``problem.beta``. The bound is concave in the policy, so for a large
    inflation the fixed point need not be the only one: it is the one that training from the reference ends at.
    """
    log_probs = problem.log_reference
    for _ in range(LONGEST):
        gain = on_policy_scores(problem, log_probs, multipliers, inflation=inflation) / problem.beta
        following = mirror_step(log_probs, problem.log_reference, gain, step=0.5)
        moved = largest_move(log_probs, following)
        log_probs = following
        if moved <= SETTLED:
            break
    return log_probs


def largest_move(before: FloatArray, after: FloatArray) -> float:
    """Return the largest change of a log-probability; padding has none."""
    live = np.isfinite(after)
    return float(np.abs(after[live] - before[live]).max())


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
    return math.log(n) - (n - 1) / n
