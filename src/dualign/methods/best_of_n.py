"""Best-of-n: no training; n answers of the reference are drawn, and one with the largest relabelled reward is given."""

from collections.abc import Generator

from dualign.errors import UsageError
from dualign.maths.dual import DualState
from dualign.maths.exact import FiniteProblem
from dualign.maths.policy_gradient import log_best_of
from dualign.methods.loop import dual_loop
from dualign.methods.options import COUNT, Option, Options, Settings
from dualign.methods.recipe import refuse_slopes
from dualign.protocols import Policy, Problem, Selects
from dualign.records import FloatArray, Iterate

OPTIONS = (Option("n", 16.0, "answers drawn for each one that is given", within=COUNT),)


def best_of_n(problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier: the best of n by ``reward - multipliers . costs``.

    The KL it costs is at most log n - (n - 1) / n nats, whatever the multiplier.

    Raises:
        UsageError: a rule that reads the slope of a Gibbs policy, a backend that cannot select.
    """
    refuse_slopes("best-of-n", settings.rule.name)
    backend, n = problem.backend, int(settings.options["n"])
    if not isinstance(backend, Selects):
        raise UsageError("method.name: needs to select among answers, which this backend cannot; finite worlds can")

    def fit(multipliers: FloatArray, name: str) -> Policy:
        return backend.best_of(problem.groups, multipliers=multipliers, n=n, reference=problem.reference, name=name)

    return dual_loop(problem, settings, fit)


def best_of_n_target(problem: FiniteProblem, multipliers: FloatArray, options: Options) -> FloatArray:
    """Return the policy in closed form."""
    return log_best_of(problem.log_reference, problem.reward - problem.costs @ multipliers, int(options["n"]))
