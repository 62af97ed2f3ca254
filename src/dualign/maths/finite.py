"""A finite constrained problem and its dual: every expectation is a sum, so every figure is exact.

Maximise ``E[reward] - beta KL(policy || reference)`` subject to ``E[cost_i] <= limit_i``. The dual function

    g(multipliers) = beta E_x log E_reference[exp((reward - multipliers . costs) / beta)] + multipliers . limits

is convex; its gradient is ``limits - E[costs]`` and its Hessian ``E_x Cov(costs) / beta``, both under the Gibbs policy
of those multipliers. The covariance is the one *within* prompts: spread between prompts does not enter.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FiniteProblem:
    """Prompts with all their responses; scores, limits and ``beta`` are in one system of units."""

    log_reference: FloatArray
    """Shape ``[prompt, response]``, log-probabilities that sum to one a prompt; ``-inf`` marks padding."""
    reward: FloatArray
    """Shape ``[prompt, response]``, higher is better; padding holds any finite number."""
    costs: FloatArray
    """Shape ``[prompt, response, constraint]``, higher is worse; padding holds any finite number."""
    prompt_weights: FloatArray
    """Shape ``[prompt]``, sums to one."""
    limits: FloatArray
    """Shape ``[constraint]``: the largest expected cost that is allowed."""
    beta: float
    """Strength of the KL term; larger keeps the policy nearer to the reference."""

    def __post_init__(self) -> None:
        prompts, responses = self.log_reference.shape
        shapes = {
            "reward": (self.reward.shape, (prompts, responses)),
            "costs": (self.costs.shape, (prompts, responses, len(self.limits))),
            "prompt_weights": (self.prompt_weights.shape, (prompts,)),
        }
        for name, (given, wanted) in shapes.items():
            if given != wanted:
                raise ValueError(f"{name} must have shape {wanted}, got {given}")
        if not self.beta > 0:
            raise ValueError(f"beta must be positive, got {self.beta}")
        if not np.allclose(_log_sum_exp(self.log_reference), 0, atol=1e-8):
            raise ValueError("log_reference must sum to probability one in every prompt")
        if not np.isclose(self.prompt_weights.sum(), 1, atol=1e-8):
            raise ValueError(f"prompt_weights must sum to 1, got {self.prompt_weights.sum()}")


@dataclass(frozen=True, slots=True)
class Expectations:
    """What a policy achieves, averaged over prompts."""

    reward: float
    costs: FloatArray
    """Shape ``[constraint]``."""
    kl: float
    """KL(policy || reference) in nats."""
    objective: float
    """``reward - beta * kl``."""


def _log_sum_exp(logits: FloatArray) -> FloatArray:
    peak = logits.max(axis=1, keepdims=True)
    total: FloatArray = np.log(np.exp(logits - peak).sum(axis=1)) + peak[:, 0]
    return total


def _tilted(problem: FiniteProblem, multipliers: FloatArray) -> FloatArray:
    return problem.log_reference + (problem.reward - problem.costs @ multipliers) / problem.beta


def log_policy(problem: FiniteProblem, multipliers: FloatArray) -> FloatArray:
    """Return the Gibbs policy ``reference * exp((reward - multipliers . costs) / beta) / Z``, as log-probabilities."""
    logits = _tilted(problem, multipliers)
    return logits - _log_sum_exp(logits)[:, None]


def dual_value(problem: FiniteProblem, multipliers: FloatArray) -> float:
    """Return ``g(multipliers)``, the best Lagrangian value of any policy; the mean over prompts is outside the log."""
    log_normalisers = _log_sum_exp(_tilted(problem, multipliers))
    return float(problem.beta * problem.prompt_weights @ log_normalisers + multipliers @ problem.limits)


def mean_costs(problem: FiniteProblem, log_probs: FloatArray) -> FloatArray:
    """Return shape ``[constraint]``: the expected costs of the policy ``log_probs[prompt, response]``."""
    mass = problem.prompt_weights[:, None] * np.exp(log_probs)
    costs: FloatArray = np.einsum("jk,jki->i", mass, problem.costs)
    return costs


def dual_gradient(problem: FiniteProblem, multipliers: FloatArray) -> FloatArray:
    """Return shape ``[constraint]``: ``limits - E[costs]`` under the Gibbs policy; negative where a limit is broken."""
    return problem.limits - mean_costs(problem, log_policy(problem, multipliers))


def prompt_covariances(problem: FiniteProblem, log_probs: FloatArray) -> FloatArray:
    """Return shape ``[prompt, constraint, constraint]``: the covariance of the costs within each prompt."""
    probs = np.exp(log_probs)
    means = np.einsum("jk,jki->ji", probs, problem.costs)
    centred = problem.costs - means[:, None, :]
    covariances: FloatArray = np.einsum("jk,jkh,jki->jhi", probs, centred, centred)
    return covariances


def dual_hessian(problem: FiniteProblem, multipliers: FloatArray) -> FloatArray:
    """Return shape ``[constraint, constraint]``: ``E_x Cov(costs) / beta``, positive semidefinite."""
    covariances = prompt_covariances(problem, log_policy(problem, multipliers))
    hessian: FloatArray = np.einsum("j,jhi->hi", problem.prompt_weights, covariances) / problem.beta
    return hessian


def prompt_kl(problem: FiniteProblem, log_probs: FloatArray) -> FloatArray:
    """Return shape ``[prompt]``: KL(policy || reference) in nats; a response of probability zero adds nothing."""
    probs = np.exp(log_probs)
    live = probs > 0
    ratios = np.subtract(log_probs, problem.log_reference, out=np.zeros_like(log_probs), where=live)
    divergences: FloatArray = (probs * ratios).sum(axis=1)
    return divergences


def expectations(problem: FiniteProblem, log_probs: FloatArray) -> Expectations:
    """Return reward, costs, KL and objective of the policy with ``[prompt, response]`` log-probabilities."""
    reward = float(problem.prompt_weights @ (np.exp(log_probs) * problem.reward).sum(axis=1))
    kl = float(problem.prompt_weights @ prompt_kl(problem, log_probs))
    return Expectations(reward, mean_costs(problem, log_probs), kl, reward - problem.beta * kl)
