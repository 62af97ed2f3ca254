"""Reward shaping: PPO on reward - multiplier cost, the ablation of Safe RLHF (Dai et al. 2023, arXiv 2310.12773)."""

from collections.abc import Generator
from dataclasses import replace

from dualign.maths.dual import DualRule, DualState
from dualign.methods.loop import dual_loop
from dualign.methods.on_policy import (
    CLIP,
    CRITIC_RATE,
    EPOCHS,
    KL_SHARE,
    LARGEST,
    PTX,
    RATE,
    SAMPLED,
    STEPS,
    dynamics,
    trained_at,
)
from dualign.methods.options import NO_OPTIONS, Options, filled
from dualign.methods.recipe import refuse_other
from dualign.protocols import OnPolicyObjective, Problem
from dualign.records import FloatArray, Iterate

OPTIONS = (
    replace(STEPS, default=75.0, meaning="on a language model: steps of the policy at each multiplier"),
    *SAMPLED,
    CLIP,
    CRITIC_RATE,
    PTX,
)
OF_A_MOVING_MULTIPLIER = {KL_SHARE.name: 1.0, RATE.name: 1.0, LARGEST.name: 1.0, EPOCHS.name: 1.0}
"""What the loop of PPO-Lagrangian asks for besides, and a weight that stays has no use for."""


def reward_shaping(
    problem: Problem,
    *,
    rule: DualRule,
    start: FloatArray,
    loss: str = "dpo",
    labels: str = "soft",  # noqa: ARG001 (there are no labels)
    temperature: float = 1.0,  # noqa: ARG001
    options: Options = NO_OPTIONS,
) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier, each trained from the reference.

    The weight stays while the policy is trained, and the KL term stands in one stream with the shaped reward, so that
    kappa is C-DPO's beta and the fixed point C-DPO's policy. The source picks the weight by hand; the dual rule is new.

    Raises:
        UsageError: a loss of another name, an option that is not positive, a backend without on-policy steps.
    """
    refuse_other("reward-shaping", loss)
    settings = dynamics({**OF_A_MOVING_MULTIPLIER, **filled("reward-shaping", OPTIONS, options)})

    def aim(multipliers: FloatArray) -> OnPolicyObjective:
        return OnPolicyObjective(multipliers=multipliers, kl=problem.beta)

    return dual_loop(problem, rule, start, trained_at(problem, aim, settings, method="reward-shaping"))
