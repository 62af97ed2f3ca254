"""Reward models that are retrained against a policy's own answers (adversarial preference optimisation).

Source: Cheng et al. 2023, arXiv 2311.08045, and the released trainer. The game has two terms: preferences, and golden
answers over the policy's. Each is divided by its own count here; the release divides both by the rows of a batch.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from dualign.maths.exact import FiniteProblem, FloatArray, log_policy

PRECISION = 1e-12
"""Largest entry of the gradient at which a fit counts as done."""
LONGEST = 200
"""Newton steps of one fit."""


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Pairs of answers as differences of their features, each with a label and a weight."""

    differences: FloatArray
    """Shape ``[pair, feature]``: first less second."""
    labels: FloatArray
    """Shape ``[pair]``: probability that the first wins."""
    weights: FloatArray
    """Shape ``[pair]``."""


def adversarial_comparisons(preferences: Comparisons, game: Comparisons, *, coefficient: float) -> Comparisons:
    """Return both terms as one set: mean rank loss plus ``coefficient`` times the mean loss of golden over sample.

    With coefficient 0 it is the Bradley-Terry reward model of the preferences alone.
    """
    own = preferences.weights / preferences.weights.sum()
    total = game.weights.sum()
    other = coefficient * game.weights / total if total > 0 else 0.0 * game.weights
    return Comparisons(
        np.concatenate([preferences.differences, game.differences]),
        np.concatenate([preferences.labels, game.labels]),
        np.concatenate([own, other]),
    )


def fit_linear_reward(pairs: Comparisons, *, ridge: float = 0.0) -> FloatArray:
    """Return the weights ``[feature]`` that minimise the weighted logistic loss plus ``ridge / 2`` their square.

    Of the many where some direction is in no pair, the shortest. Damped Newton steps; the loss never rises.
    """
    theta = np.zeros(pairs.differences.shape[1])
    for _ in range(LONGEST):
        chance = expit(pairs.differences @ theta)
        gradient = pairs.differences.T @ (pairs.weights * (chance - pairs.labels)) + ridge * theta
        if np.abs(gradient).max() <= PRECISION:
            break
        bend = pairs.weights * chance * (1 - chance)
        hessian = pairs.differences.T @ (bend[:, None] * pairs.differences) + ridge * np.eye(len(theta))
        step = np.linalg.lstsq(hessian, gradient, rcond=1e-13)[0]
        size, now = 1.0, _loss(pairs, theta, ridge)
        while _loss(pairs, theta - size * step, ridge) > now and size > 1e-10:
            size /= 2
        if size <= 1e-10:
            break
        theta = theta - size * step
    return theta


def _loss(pairs: Comparisons, theta: FloatArray, ridge: float) -> float:
    logits = pairs.differences @ theta
    # BCE = softplus(z) - label z
    losses = np.logaddexp(0, logits) - pairs.labels * logits
    return float(pairs.weights @ losses) + ridge / 2 * float(theta @ theta)


def table_reward(
    scores: FloatArray, probabilities: FloatArray, *, coefficient: float, temperature: float = 1.0
) -> FloatArray:
    """Return the retrained rewards ``[response]`` of one prompt whose answers are all known, in units of ``scores``.

    Preferences are every pair, read as ``sigmoid(score difference / temperature)``; the golden answer is the one with
    the largest score; the policy's answers are weighed by their ``probabilities``, the golden one left out. The mean
    over the answers is that of ``scores``: pairs say nothing of it.
    """
    one, other = np.triu_indices(len(scores), 1)
    identity = np.eye(len(scores))
    preferences = Comparisons(
        identity[one] - identity[other],
        expit((scores[one] - scores[other]) / temperature),
        np.ones(len(one)),
    )
    golden = int(np.argmax(scores))
    others = np.delete(np.arange(len(scores)), golden)
    mass = probabilities[others]
    game = Comparisons(identity[golden] - identity[others], np.ones(len(others)), mass)
    # The golden answer met by itself is a constant: what it takes from the mass is not given to the others.
    joined = adversarial_comparisons(preferences, game, coefficient=coefficient * float(mass.sum()))
    rewards = temperature * fit_linear_reward(joined)
    return np.asarray(rewards - rewards.mean() + np.asarray(scores).mean())


def adversarial_policy(
    problem: FiniteProblem, multipliers: FloatArray, *, coefficient: float, rounds: int, temperature: float = 1.0
) -> FloatArray:
    """Return the log-probabilities ``[prompt, response]`` after ``rounds`` of the game, each solved exactly.

    Each round's reward model is trained anew against the last round's policy, the reference at first; each policy is
    the Gibbs policy of its round's rewards.
    """
    scores = problem.reward - problem.costs @ multipliers
    support = np.isfinite(problem.log_reference)
    policy = problem.log_reference
    for _ in range(rounds):
        rewards = np.zeros_like(scores)
        for row, live in enumerate(support):
            rewards[row, live] = table_reward(
                scores[row, live], np.exp(policy[row, live]), coefficient=coefficient, temperature=temperature
            )
        policy = log_policy(replace(problem, reward=rewards, costs=0 * problem.costs), 0 * multipliers)
    return policy


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


def solve_tau(losses: FloatArray, weights: FloatArray, *, rho: float) -> float:
    """Return the ``tau`` at which KL(P || P0) = ``rho`` nats: the minimiser of ``tau rho + log_mean_exp``.

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
