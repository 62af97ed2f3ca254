"""The loop of policy-gradient methods: steps of policy and multiplier in turn, a measured iterate an epoch."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dualign.backends.capabilities import Improves, OnPolicyObjective
from dualign.backends.protocol import Policy, Problem
from dualign.errors import UsageError
from dualign.maths.dual import DualRule, DualState, Stopping
from dualign.maths.dual_rule import resolve, select
from dualign.maths.policy_gradient import multiplier_step
from dualign.methods.loop import observe
from dualign.methods.options import Option
from dualign.records import FloatArray, Iterate

KL_SHARE = Option("kl_share", 1.0, "kappa, the KL coefficient in the reward, as a multiple of the problem's beta")
RATE = Option("rate", 0.1, "alpha of the step on the multiplier's logarithm, in raw units")
LARGEST = Option("largest", 1e4, "largest multiplier, raw")
EPOCHS = Option("epochs", 80.0, "measured policies at the most")
STEPS = Option("steps", 25.0, "steps of the policy, each followed by one of the multiplier, between two measurements")
LOOP = (KL_SHARE, RATE, LARGEST, EPOCHS, STEPS)
LEAST = 1e-3
"""Smallest raw multiplier of a search: in log space 0 is never left."""
LONGEST = 500
"""Steps for a multiplier that is kept."""

Aim = Callable[[FloatArray], OnPolicyObjective]
"""Multipliers, normalised -> what a step raises."""


@dataclass(frozen=True, slots=True)
class Dynamics:
    """How the multiplier follows the costs of the policy's own answers."""

    rate: float
    largest: float
    epochs: int
    steps: int
    inflation: float = 0.0
    """Standard deviations that a cost's mean is raised by before it is held against the limit."""


def dynamics(options: Any, *, inflation: float = 0.0) -> Dynamics:
    """Return the loop's settings among a method's options.

    Raises:
        UsageError: one that is not positive.
    """
    for option in LOOP:
        if not (0 < float(options[option.name]) < np.inf):
            raise UsageError(f"option {option.name}: must be a number above 0, got {options[option.name]}")
    return Dynamics(
        float(options["rate"]), float(options["largest"]), int(options["epochs"]), int(options["steps"]), inflation
    )


def on_policy_loop(
    problem: Problem, rule: DualRule, start: FloatArray, aim: Aim, settings: Dynamics
) -> Generator[Iterate, None, DualState]:
    """Yield an iterate an epoch; ``rule`` fixed keeps ``start``, any other is replaced by the method's own dynamics.

    Raises:
        UsageError: the backend cannot take on-policy steps.
    """
    if not isinstance(problem.backend, Improves):
        raise UsageError("method.name: needs on-policy steps, which this backend has not; only finite worlds have them")
    if rule.name == "fixed":
        return (yield from _kept(problem, start, aim))
    return (yield from _searched(problem, start, aim, settings))


def _step(problem: Problem, policy: Policy, objective: OnPolicyObjective, name: str) -> Policy:
    assert isinstance(problem.backend, Improves)
    return problem.backend.improve(policy, problem.groups, objective=objective, reference=problem.reference, name=name)


def _row(policy: Policy) -> Any:
    assert policy.report is not None
    return policy.report.history[0]


def _kept(problem: Problem, start: FloatArray, aim: Aim) -> Generator[Iterate, None, DualState]:
    """Yield the one policy that steps at multipliers ``start`` settle at."""
    policy = problem.reference
    for _ in range(LONGEST):
        policy = _step(problem, policy, aim(start), "00")
        if _row(policy)["converged"]:
            break
    evaluation = problem.evaluate(policy)
    yield Iterate(0, start, evaluation, policy)
    state = DualState(start, start, history=(observe(problem, start, evaluation),))
    return resolve(state, "converged", start)


def _searched(problem: Problem, start: FloatArray, aim: Aim, settings: Dynamics) -> Generator[Iterate, None, DualState]:
    """Yield the policy after every epoch, until limits hold and neither multipliers nor policy move."""
    units = problem.raw_multipliers(np.ones_like(start))
    multipliers = np.maximum(start, LEAST / units)
    policy, state, stopping = problem.reference, DualState(multipliers, start), Stopping()
    for epoch in range(settings.epochs):
        for _ in range(settings.steps):
            policy = _step(problem, policy, aim(multipliers), f"{epoch:02d}")
            multipliers = _following(problem, multipliers, _row(policy), settings, units)
        evaluation = problem.evaluate(policy)
        yield Iterate(epoch, multipliers, evaluation, policy)
        seen = observe(problem, multipliers, evaluation)
        state = DualState(multipliers, start, history=(*state.history, seen))
        noise = np.maximum(stopping.violation_tolerance, stopping.z * seen.error)
        held_up = multipliers * units > 2 * LEAST
        rest = np.where(held_up, np.abs(seen.violation), seen.violation)
        if settings.inflation == 0 and np.all(rest <= noise / 2) and _row(policy)["moved"] <= 1e-4:
            return resolve(state, "converged" if held_up.any() else "slack", multipliers)
    index, _ = select(state.history, stopping)
    return resolve(state, "budget", state.history[index].multipliers)


def _following(
    problem: Problem, multipliers: FloatArray, row: Any, settings: Dynamics, units: FloatArray
) -> FloatArray:
    """Return the multipliers after one step on their logarithm, by the costs of the answers that were just used."""
    count = range(len(multipliers))
    mean = np.array([row[f"cost_{k}"] for k in count])
    deviation = np.array([row[f"cost_sd_{k}"] for k in count])
    violation = mean + settings.inflation * deviation - problem.limits
    # alpha * raw multiplier * raw violation = alpha * reward unit * multiplier * violation, both normalised.
    rate = np.full_like(multipliers, settings.rate * problem.reward_unit)
    following = multiplier_step(multipliers, violation, rate=rate, largest=settings.largest / units)
    return np.maximum(following, LEAST / units)
