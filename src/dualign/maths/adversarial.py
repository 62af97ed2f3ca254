"""Reward models that are retrained against a policy's own answers (adversarial preference optimisation).

Source: Cheng et al. 2023, arXiv 2311.08045, and the released trainer. The game has two terms: preferences, and golden
answers over the policy's. Each is divided by its own count here; the release divides both by the rows of a batch.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from dualign.maths.finite import FiniteProblem, FloatArray, log_policy

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
        retrained = FiniteProblem(
            problem.log_reference, rewards, 0 * problem.costs, problem.prompt_weights, problem.limits, problem.beta
        )
        policy = log_policy(retrained, 0 * multipliers)
    return policy
