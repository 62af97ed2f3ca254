"""The outer loop that methods with multipliers share: fit, measure, let the dual rule choose the next multipliers."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

from dualign.errors import UsageError
from dualign.maths.dual import DualState, Observation
from dualign.methods.options import Settings
from dualign.protocols import Merges, Objective, Policy, Problem
from dualign.records import Evaluation, FloatArray, Group, Iterate

Fit = Callable[[FloatArray, str], Policy]
"""(multipliers of shape ``[constraint]``, name) -> the policy that the method trains for them."""


def dual_loop(problem: Problem, settings: Settings, fit: Fit) -> Generator[Iterate, None, DualState]:
    """Yield one iterate for every multiplier that the rule asks for; return the rule's last state.

    Multipliers that were measured are looked up and never fitted again.
    """
    state = settings.rule.init(settings.start)
    measured: dict[tuple[float, ...], Evaluation] = {}
    while state.status == "running":
        multipliers = state.multipliers
        key = tuple(multipliers.tolist())
        if key not in measured:
            policy = fit(multipliers, f"{len(measured):02d}")
            measured[key] = problem.evaluate(policy)
            yield Iterate(len(measured) - 1, multipliers, measured[key], policy)
        state = settings.rule.update(observe(problem, multipliers, measured[key]), state)
    return state


def observe(problem: Problem, multipliers: FloatArray, evaluation: Evaluation) -> Observation:
    """Return what the dual rule sees: the violation of the limits less the margin, its error and its slope."""
    margin = 0.0 if problem.margin is None else problem.margin(evaluation)
    violation = evaluation.costs - problem.limits + margin
    return Observation(multipliers, violation, evaluation.cost_errors, evaluation.slope)


def fitted(
    problem: Problem,
    objective: Objective,
    name: str,
    *,
    groups: Sequence[Group] | None = None,
    reference: Policy | None = None,
    start: Policy | None = None,
) -> Policy:
    """Return the policy that minimises ``objective`` on the problem's groups from its reference, or on other ones."""
    return problem.backend.fit(
        problem.groups if groups is None else groups,
        objective=objective,
        reference=reference or problem.reference,
        start=start,
        seed=problem.seed,
        name=name,
    )


def with_columns(groups: Sequence[Group], **columns: Sequence[FloatArray]) -> list[Group]:
    """Return ``groups`` with further per-response columns, each given as one ``[response]`` array a group."""
    return [
        replace(group, columns={**group.columns, **{name: values[k] for name, values in columns.items()}})
        for k, group in enumerate(groups)
    ]


def mixed_at_limit(problem: Problem, iterates: Sequence[Iterate]) -> Iterate | None:
    """Return the measured mix of the nearest policies above and below the one limit; none where a side has none.

    The share is where the violation, linear between the two, is 0. Log-probabilities mixed by share s are, up to their
    normaliser, those of the Gibbs policy at ``(1 - s) lambda + s lambda'``, so that on a table with fitted policies
    this is C-DPO at the mixed multiplier, exactly. A mix of weights is that for log-linear models alone.

    Raises:
        UsageError: several limits, which no line lies between, or a backend that cannot merge.
    """
    if len(problem.limits) != 1:
        raise UsageError(f"method.interpolate: serves one limit, {len(problem.limits)} are given")
    if not isinstance(problem.backend, Merges):
        raise UsageError("method.interpolate: needs to merge policies, which this backend cannot")
    seen = [(float(observe(problem, row.multipliers, row.evaluation).violation[0]), row) for row in iterates]
    above = min((pair for pair in seen if pair[0] > 0), key=lambda pair: pair[0], default=None)
    below = max((pair for pair in seen if pair[0] <= 0), key=lambda pair: pair[0], default=None)
    if above is None or below is None:
        return None
    share = above[0] / (above[0] - below[0])
    first, second = above[1].policy, below[1].policy
    assert isinstance(first, Policy)
    assert isinstance(second, Policy)
    policy = problem.backend.merge(first, second, share=share, name=f"{len(iterates):02d}-between")
    multipliers = (1 - share) * above[1].multipliers + share * below[1].multipliers
    return Iterate(len(iterates), multipliers, problem.evaluate(policy), policy)
