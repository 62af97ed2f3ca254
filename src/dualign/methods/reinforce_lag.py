"""HC-RLHF: REINFORCE under an inflated cost (arXiv 2506.08266), exact on worlds, by samples on models."""

from collections.abc import Generator
from dataclasses import replace

from dualign.maths.dual import DualState
from dualign.maths.exact import FiniteProblem
from dualign.maths.policy_gradient import inflated_policy, inflation_factor
from dualign.methods.on_policy import ANSWERS, LOOP, PTX, SAMPLED, WINDOW, Dynamics, on_policy_loop
from dualign.methods.options import Option, Options, Range, Settings
from dualign.protocols import OnPolicyObjective, Problem
from dualign.records import FloatArray, Iterate

OPTIONS = (
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
