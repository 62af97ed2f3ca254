"""C-DPO: preference optimisation under limits on expected costs (Liu, Sun & Zheng 2024, arXiv 2403.02475)."""

from collections.abc import Generator

import numpy as np

from dualign.backends.protocol import Objective, Policy, Problem
from dualign.errors import UsageError
from dualign.maths.dual import DualRule, DualState
from dualign.methods.loop import dual_loop
from dualign.methods.nearest import unknown
from dualign.methods.options import NO_OPTIONS, Options
from dualign.records import FloatArray, Iterate


def c_dpo(
    problem: Problem,
    *,
    rule: DualRule,
    start: FloatArray,
    loss: str = "dpo",
    labels: str = "soft",
    temperature: float = 1.0,
    options: Options = NO_OPTIONS,  # noqa: ARG001 (every method of the table is called alike)
) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier that was trained for; it ends with the rule's state.

    Every round relabels the pairs by ``reward - multipliers . costs``, fits a policy on them by DPO from the fixed
    reference, measures its costs, and asks the rule for the next multipliers. The paper is ``rule=gradient(...)`` with
    its reference fixed and its pairs relabelled; projection, stop and the other rules are reconstructions, and so are
    soft labels, whose minimiser is the Gibbs policy of the multipliers.

    Raises:
        UsageError: an unknown loss or label mode, a temperature that is not positive.
    """

    def fit(multipliers: FloatArray, name: str) -> Policy:
        return problem.backend.fit(
            problem.groups,
            objective=relabelled(multipliers, problem.beta, loss=loss, labels=labels, temperature=temperature),
            reference=problem.reference,
            start=None,
            seed=problem.seed,
            name=name,
        )

    return dual_loop(problem, rule, start, fit)


def relabelled(multipliers: FloatArray, beta: float, *, loss: str, labels: str, temperature: float) -> Objective:
    """Return the objective whose labels prefer the larger ``reward - multipliers . costs``.

    ``beta`` is that of the problem. Labels at ``temperature`` and a loss with ``beta / temperature`` have the policy of
    ``beta`` as their minimum, so the temperature moves how saturated labels are, and not the policy that is sought.

    Raises:
        UsageError: as ``c_dpo``.
    """
    # Here, not on top: the table of methods is printed without torch.
    from dualign.maths.losses import LABELS, LOSSES

    if loss not in LOSSES:
        raise UsageError(unknown("loss", loss, LOSSES))
    if labels not in LABELS:
        raise UsageError(unknown("labels", labels, LABELS))
    if not (temperature > 0 and np.isfinite(temperature)):
        raise UsageError(f"temperature: must be a number above 0, got {temperature}")
    pairwise, coefficient = LOSSES[loss], beta / temperature
    return Objective(
        loss=lambda preferred, other: pairwise(preferred.log_ratio, other.log_ratio, beta=coefficient),
        labels=LABELS[labels],
        multipliers=multipliers,
        beta=coefficient,
        temperature=temperature,
        name=f"{loss}-{labels}",
    )
