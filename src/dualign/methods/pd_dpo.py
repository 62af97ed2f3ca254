"""PD-DPO, the offline form: DPO on help, then on harm against that policy, and a dual step (Du et al., 2510.05703)."""

from collections.abc import Generator

from dualign.maths.dual import DualRule, DualState
from dualign.methods.loop import dual_loop
from dualign.methods.options import NO_OPTIONS, Options
from dualign.methods.phases import Labelling, helpful_then_safe
from dualign.protocols import Problem
from dualign.records import FloatArray, Iterate


def pd_dpo(
    problem: Problem,
    *,
    rule: DualRule,
    start: FloatArray,
    loss: str = "dpo",
    labels: str = "soft",
    temperature: float = 1.0,
    options: Options = NO_OPTIONS,  # noqa: ARG001 (every method of the table is called alike)
) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier.

    Its primal step, with the harm preference's implied cost ``beta log(pi_r / pi)``, is DPO at ``beta / multiplier``
    from the policy that learnt the reward (both forms are equal: ``maths.losses_two_phase``). ``rule`` gradient is the
    direction of its dual step; the projection to an interval and every other rule are reconstructions. The exploration
    bonuses of the online form are left out.
    """
    return dual_loop(problem, rule, start, helpful_then_safe(problem, Labelling(loss, labels, temperature)))
