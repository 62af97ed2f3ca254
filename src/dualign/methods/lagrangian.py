"""Policy gradients under limits: PPO-Lagrangian and its ablation with a weight (Safe RLHF), and HC-RLHF.

Safe RLHF is Dai et al. 2023, arXiv 2310.12773; HC-RLHF, arXiv 2506.08266, is REINFORCE under an inflated cost. Exact on
finite worlds: natural-gradient steps stand for clipped ones on samples, and both have the same fixed point. On a
language model the critics of PPO are linear heads on the policy's states, where the source trains two whole models.
"""

from collections.abc import Generator, Mapping
from dataclasses import replace

import numpy as np

from dualign.maths.dual import DualState
from dualign.maths.exact import FiniteProblem
from dualign.maths.policy_gradient import inflated_policy, inflation_factor, lagrangian_policy
from dualign.methods.loop import dual_loop
from dualign.methods.on_policy import (
    ANSWERS,
    CLIP,
    CRITIC_RATE,
    EPOCHS,
    KL_SHARE,
    LARGEST,
    LOOP,
    PTX,
    RATE,
    SAMPLED,
    STEPS,
    WINDOW,
    Dynamics,
    on_policy_loop,
    trained_at,
)
from dualign.methods.options import Option, Options, Range, Settings
from dualign.protocols import OnPolicyObjective, Problem
from dualign.records import FloatArray, Iterate

PPO_LAG_OPTIONS = (replace(KL_SHARE, default=0.2), *LOOP[1:], *SAMPLED, CLIP, CRITIC_RATE, PTX)
"""At kappa = beta no multiplier goes below the costs of the Gibbs policy of -cost: most limits are out of reach."""


def ppo_lag(problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate an epoch; the multiplier moves by its own rule, on its logarithm.

    The actor raises ``E[(reward - multiplier cost) / (1 + multiplier)] - kappa KL``, so its policy is the Gibbs policy
    of ``beta = kappa (1 + multiplier)``.

    Raises:
        UsageError: a backend without on-policy steps.
    """
    kl = float(settings.options["kl_share"]) * problem.beta

    def aim(multipliers: FloatArray) -> OnPolicyObjective:
        scale = 1 / (1 + float(problem.raw_multipliers(multipliers).sum()))
        return OnPolicyObjective(multipliers=multipliers, kl=kl, scale=scale)

    return on_policy_loop(problem, settings, Dynamics("ppo-lag", "critic", aim, settings.options))


def ppo_lag_target(problem: FiniteProblem, multipliers: FloatArray, options: Options) -> FloatArray:
    """Return the Gibbs policy of ``beta = kappa (1 + sum of multipliers)``."""
    return lagrangian_policy(problem, multipliers, kl=float(options["kl_share"]) * problem.beta)


def multiplier_and_kappa(multipliers: FloatArray, beta: float, options: Options) -> Mapping[str, float]:
    """Return the multiplier (the sum, where there are several) and kappa."""
    return {"lambda": float(np.sum(multipliers)), "kl": float(options["kl_share"]) * beta}


REWARD_SHAPING_OPTIONS = (
    replace(STEPS, default=75.0, meaning="on a language model: steps of the policy at each multiplier"),
    *SAMPLED,
    CLIP,
    CRITIC_RATE,
    PTX,
)
OF_A_MOVING_MULTIPLIER = {KL_SHARE.name: 1.0, RATE.name: 1.0, LARGEST.name: 1.0, EPOCHS.name: 1.0}
"""What the loop of PPO-Lagrangian asks for besides, and a weight that stays has no use for."""


def reward_shaping(problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier: PPO on reward - multiplier cost, from the reference.

    The weight stays while the policy is trained, and the KL term stands in one stream with the shaped reward, so that
    kappa is C-DPO's beta and the fixed point C-DPO's policy. The source picks the weight by hand; the dual rule is new.

    Raises:
        UsageError: a backend without on-policy steps.
    """

    def aim(multipliers: FloatArray) -> OnPolicyObjective:
        return OnPolicyObjective(multipliers=multipliers, kl=problem.beta)

    options = {**OF_A_MOVING_MULTIPLIER, **settings.options}
    return dual_loop(problem, settings, trained_at(problem, Dynamics("reward-shaping", "critic", aim, options)))


REINFORCE_LAG_OPTIONS = (
    *LOOP,
    *(option for option in SAMPLED if option not in (ANSWERS, WINDOW)),
    replace(ANSWERS, default=4.0, within=Range(2, whole=True)),
    replace(WINDOW, default=256.0),
    PTX,
    Option(
        "delta",
        0.1,
        "one minus the confidence of the safety test that costs are inflated for; 0: no inflation",
        within=Range(0, 1, high_included=False),
    ),
    Option(
        "candidates",
        256.0,
        "costs behind the estimate that is inflated; on a language model, the window's size",
        within=Range(2, whole=True),
    ),
    Option("safety", 1000.0, "prompts of the safety test", within=Range(2, whole=True)),
)


def inflation(options: Options) -> float:
    """Return q of ``options``; 0 where ``delta`` is."""
    delta, candidates, safety = (float(options[name]) for name in ("delta", "candidates", "safety"))
    return inflation_factor(delta, candidates=int(candidates), safety=int(safety)) if delta else 0.0


def reinforce_lag(problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate an epoch; costs count as ``mean + q SD`` in the policy and the multiplier.

    One n stands for the dual's and the actor's, which differ in the released program. The safety test is the
    certificate's: one test, on prompts used for nothing else.

    Raises:
        UsageError: a backend without on-policy steps.
    """
    width, kl = inflation(settings.options), float(settings.options["kl_share"]) * problem.beta

    def aim(multipliers: FloatArray) -> OnPolicyObjective:
        return OnPolicyObjective(multipliers=multipliers, kl=kl, inflation=width)

    return on_policy_loop(
        problem, settings, Dynamics("reinforce-lag", "leave-one-out", aim, settings.options, inflation=width)
    )


def reinforce_lag_target(problem: FiniteProblem, multipliers: FloatArray, options: Options) -> FloatArray:
    """Return the Gibbs policy of the policy's own inflated costs, at ``beta = kappa``."""
    scaled = replace(problem, beta=float(options["kl_share"]) * problem.beta)
    return inflated_policy(scaled, multipliers, inflation=inflation(options))
