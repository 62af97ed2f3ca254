"""One more candidate without training: the mix of the two policies on either side of a limit."""

from collections.abc import Sequence

from dualign.backends.capabilities import Merges
from dualign.backends.protocol import Policy, Problem
from dualign.errors import UsageError
from dualign.methods.loop import observe
from dualign.records import Iterate


def between(problem: Problem, iterates: Sequence[Iterate]) -> Iterate | None:
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
