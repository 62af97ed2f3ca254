"""Best-of-n: no training; n answers of the reference are drawn, and one with the largest relabelled reward is given."""

from collections.abc import Generator

from dualign.errors import UsageError
from dualign.maths.dual import DualRule, DualState
from dualign.maths.exact import FiniteProblem
from dualign.maths.policy_gradient import log_best_of
from dualign.methods.loop import dual_loop
from dualign.methods.options import COUNT, NO_OPTIONS, Option, Options, filled
from dualign.methods.recipe import refuse_other, refuse_slopes
from dualign.protocols import Policy, Problem, Selects
from dualign.records import FloatArray, Iterate

OPTIONS = (Option("n", 16.0, "answers drawn for each one that is given", within=COUNT),)


def best_of_n(
    problem: Problem,
    *,
    rule: DualRule,
    start: FloatArray,
    loss: str = "dpo",
    labels: str = "soft",  # noqa: ARG001 (there are no labels)
    temperature: float = 1.0,  # noqa: ARG001
    options: Options = NO_OPTIONS,
) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier: the best of n by ``reward - multipliers . costs``.

    The KL it costs is at most log n - (n - 1) / n nats, whatever the multiplier.

    Raises:
        UsageError: a loss of another name, n below 1, a rule that reads the slope of a Gibbs policy, a backend that
            cannot select.
    """
    refuse_other("best-of-n", loss)
    refuse_slopes("best-of-n", rule.name)
    backend, n = problem.backend, int(filled("best-of-n", OPTIONS, options)["n"])
    if not isinstance(backend, Selects):
        raise UsageError("method.name: needs to select among answers, which this backend cannot; finite worlds can")

    def fit(multipliers: FloatArray, name: str) -> Policy:
        return backend.best_of(problem.groups, multipliers=multipliers, n=n, reference=problem.reference, name=name)

    return dual_loop(problem, rule, start, fit)


def best_of_n_target(problem: FiniteProblem, multipliers: FloatArray, options: Options) -> FloatArray:
    """Return the policy in closed form."""
    return log_best_of(problem.log_reference, problem.reward - problem.costs @ multipliers, int(options["n"]))
