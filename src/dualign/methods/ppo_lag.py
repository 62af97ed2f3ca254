"""PPO-Lagrangian of Safe RLHF (Dai et al. 2023, arXiv 2310.12773), exact on finite worlds, by samples on models."""

from collections.abc import Generator, Mapping
from dataclasses import replace

import numpy as np

from dualign.maths.dual import DualRule, DualState
from dualign.maths.exact import FiniteProblem
from dualign.maths.policy_gradient import lagrangian_policy
from dualign.methods.on_policy import CLIP, CRITIC_RATE, KL_SHARE, LOOP, PTX, SAMPLED, dynamics, on_policy_loop
from dualign.methods.options import NO_OPTIONS, Options, filled
from dualign.methods.recipe import refuse_other
from dualign.protocols import OnPolicyObjective, Problem
from dualign.records import FloatArray, Iterate

OPTIONS = (
    replace(KL_SHARE, default=0.2),
    *LOOP[1:],
    *SAMPLED,
    CLIP,
    CRITIC_RATE,
    PTX,
)
"""At kappa = beta no multiplier goes below the costs of the Gibbs policy of -cost: most limits are out of reach."""


def ppo_lag(
    problem: Problem,
    *,
    rule: DualRule,
    start: FloatArray,
    loss: str = "dpo",
    labels: str = "soft",  # noqa: ARG001 (there are no labels)
    temperature: float = 1.0,  # noqa: ARG001
    options: Options = NO_OPTIONS,
) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate an epoch; the multiplier moves by its own rule, on its logarithm.

    The actor raises ``E[(reward - multiplier cost) / (1 + multiplier)] - kappa KL``, so its policy is the Gibbs policy
    of ``beta = kappa (1 + multiplier)``. On a table natural-gradient steps stand for clipped ones on samples:
    both have that fixed point. On a language model the critics are linear heads on the policy's states, where the
    source trains two whole models.

    Raises:
        UsageError: a loss of another name, an option that is not positive, a backend without on-policy steps.
    """
    refuse_other("ppo-lag", loss)
    chosen = filled("ppo-lag", OPTIONS, options)
    kl = float(chosen["kl_share"]) * problem.beta

    def aim(multipliers: FloatArray) -> OnPolicyObjective:
        scale = 1 / (1 + float(problem.raw_multipliers(multipliers).sum()))
        return OnPolicyObjective(multipliers=multipliers, kl=kl, scale=scale)

    return on_policy_loop(problem, rule, start, aim, dynamics(chosen), method="ppo-lag", estimator="critic")


def ppo_lag_target(problem: FiniteProblem, multipliers: FloatArray, options: Options) -> FloatArray:
    """Return the Gibbs policy of ``beta = kappa (1 + sum of multipliers)``."""
    return lagrangian_policy(problem, multipliers, kl=float(options["kl_share"]) * problem.beta)


def ppo_lag_parameters(multipliers: FloatArray, beta: float, options: Options) -> Mapping[str, float]:
    """Return the multiplier (the sum, where there are several) and kappa."""
    return {"lambda": float(np.sum(multipliers)), "kl": float(options["kl_share"]) * beta}
