"""The outer loop that methods with multipliers share: fit, measure, let the dual rule choose the next multipliers."""

from collections.abc import Callable, Generator

from dualign.backends.protocol import Policy, Problem
from dualign.maths.dual import DualRule, DualState, Observation
from dualign.records import Evaluation, FloatArray, Iterate

Fit = Callable[[FloatArray, str], Policy]
"""(multipliers of shape ``[constraint]``, name) -> the policy that the method trains for them."""


def dual_loop(problem: Problem, rule: DualRule, start: FloatArray, fit: Fit) -> Generator[Iterate, None, DualState]:
    """Yield one iterate for every multiplier that ``rule`` asks for; return the rule's last state.

    Multipliers that were measured are looked up and never fitted again.
    """
    state = rule.init(start)
    measured: dict[tuple[float, ...], Evaluation] = {}
    while state.status == "running":
        multipliers = state.multipliers
        key = tuple(multipliers.tolist())
        if key not in measured:
            policy = fit(multipliers, f"{len(measured):02d}")
            measured[key] = problem.evaluate(policy)
            yield Iterate(len(measured) - 1, multipliers, measured[key], policy)
        state = rule.update(observe(problem, multipliers, measured[key]), state)
    return state


def observe(problem: Problem, multipliers: FloatArray, evaluation: Evaluation) -> Observation:
    """Return what the dual rule sees: the violation of the limits less the margin, its error and its slope."""
    margin = 0.0 if problem.margin is None else problem.margin(evaluation)
    violation = evaluation.costs - problem.limits + margin
    return Observation(multipliers, violation, evaluation.cost_errors, evaluation.slope)
