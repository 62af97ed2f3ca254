"""The loop of policy-gradient methods: steps of policy and multiplier in turn, a measured iterate an epoch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dualign.errors import UsageError
from dualign.maths.dual import DualRule, DualState, Stopping
from dualign.maths.dual_rule import resolve, select
from dualign.maths.policy_gradient import multiplier_step
from dualign.methods.loop import Fit, observe
from dualign.methods.offline import aimed_limits
from dualign.methods.options import COUNT, NOT_NEGATIVE, POSITIVE, Option
from dualign.protocols import Improves, OnPolicyObjective, OnPolicyTraining, Policy, Problem, TrainsOnPolicy
from dualign.records import FloatArray, Iterate

KL_SHARE = Option(
    "kl_share", 1.0, "kappa, the KL coefficient in the reward, as a multiple of the problem's beta", within=POSITIVE
)
RATE = Option("rate", 0.1, "alpha of the step on the multiplier's logarithm, in raw units", within=POSITIVE)
LARGEST = Option("largest", 1e4, "largest multiplier, raw", within=POSITIVE)
EPOCHS = Option("epochs", 80.0, "measured policies at the most", within=COUNT)
STEPS = Option(
    "steps", 25.0, "steps of the policy, each followed by one of the multiplier, between two measurements", within=COUNT
)
PROMPTS = Option("prompts", 16.0, "on a language model: prompts that a step samples answers to", within=COUNT)
ANSWERS = Option("answers", 1.0, "on a language model: answers to each of them", within=COUNT)
UPDATES = Option("updates", 1.0, "on a language model: updates of the policy by the same answers", within=COUNT)
LEARNING_RATE = Option(
    "learning_rate", 2e-4, "on a language model: peak rate of the policy, in place of training's", within=POSITIVE
)
CLIP = Option(
    "clip", 0.2, "on a language model: how far a token's ratio to its old probability may go from 1", within=POSITIVE
)
CRITIC_RATE = Option("critic_rate", 3e-3, "on a language model: learning rate of the critics", within=POSITIVE)
PTX = Option(
    "ptx",
    0.0,
    "on a language model: weight of the warm start's answers, imitated in steps of their own",
    within=NOT_NEGATIVE,
)
WINDOW = Option("window", 128.0, "on a language model: late answers whose mean cost moves the multiplier", within=COUNT)
LOOP = (KL_SHARE, RATE, LARGEST, EPOCHS, STEPS)
SAMPLED = (PROMPTS, ANSWERS, UPDATES, LEARNING_RATE, WINDOW)
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
    sampled: Mapping[str, float] = field(default_factory=dict)
    """All options by name: what a backend that samples needs."""


def dynamics(options: Any, *, inflation: float = 0.0) -> Dynamics:
    """Return the loop's settings among a method's options."""
    sampled = {name: float(value) for name, value in options.items() if not isinstance(value, str)}
    rate, largest, epochs, steps = (options[option.name] for option in (RATE, LARGEST, EPOCHS, STEPS))
    return Dynamics(float(rate), float(largest), int(epochs), int(steps), inflation, sampled)


def on_policy_loop(
    problem: Problem,
    rule: DualRule,
    start: FloatArray,
    aim: Aim,
    settings: Dynamics,
    *,
    method: str,
    estimator: Literal["critic", "leave-one-out"],
) -> Generator[Iterate, None, DualState]:
    """Yield an iterate an epoch; ``rule`` fixed keeps ``start``, any other is replaced by the method's own dynamics.

    A table takes exact steps until it settles; a language model samples (``estimator`` says how answers are weighed).

    Raises:
        UsageError: the backend cannot train on answers of the policy.
    """
    if isinstance(problem.backend, TrainsOnPolicy) and problem.score is not None:
        kept = rule.name == "fixed"
        training = _training(problem, start, aim, settings, kept=kept, method=method, estimator=estimator)
        return (yield from _trained(problem, problem.backend, start, training, settings))
    if not isinstance(problem.backend, Improves):
        raise UsageError("method.name: needs answers of the policy in training, which this backend cannot give")
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
    policy = _settled(problem, start, aim, "00")
    evaluation = problem.evaluate(policy)
    yield Iterate(0, start, evaluation, policy)
    state = DualState(start, start, history=(observe(problem, start, evaluation),))
    return resolve(state, "converged", start)


def _settled(problem: Problem, multipliers: FloatArray, aim: Aim, name: str) -> Policy:
    """Return the policy at which exact steps at ``multipliers`` settle."""
    policy = problem.reference
    for _ in range(LONGEST):
        policy = _step(problem, policy, aim(multipliers), name)
        if _row(policy)["converged"]:
            break
    return policy


def trained_at(problem: Problem, aim: Aim, settings: Dynamics, *, method: str) -> Fit:
    """Return the fit of one policy at multipliers that stay: exact on a table, ``settings.steps`` of PPO on a model.

    Raises:
        UsageError: the backend cannot train on answers of the policy.
    """
    backend, score = problem.backend, problem.score
    if isinstance(backend, TrainsOnPolicy) and score is not None:

        def trained(multipliers: FloatArray, name: str) -> Policy:
            training = _training(problem, multipliers, aim, settings, kept=True, method=method, estimator="critic")
            return backend.train_on_policy(
                problem.reference, problem.groups, training=training, score=score, reference=problem.reference,
                seed=problem.seed, name=name,
            )  # fmt: skip

        return trained
    if not isinstance(backend, Improves):
        raise UsageError("method.name: needs answers of the policy in training, which this backend cannot give")
    return lambda multipliers, name: _settled(problem, multipliers, aim, name)


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


def _training(
    problem: Problem,
    start: FloatArray,
    aim: Aim,
    settings: Dynamics,
    *,
    kept: bool,
    method: str,
    estimator: Literal["critic", "leave-one-out"],
) -> OnPolicyTraining:
    """Return an epoch's worth of training on sampled answers; ``kept``: the multipliers stay where they are."""
    units = problem.raw_multipliers(np.ones_like(start))
    # inflated costs leave that room already
    aimed = problem.limits if settings.inflation else aimed_limits(problem)

    def follow(multipliers: FloatArray, mean: FloatArray, deviation: FloatArray) -> FloatArray:
        if kept:
            return multipliers
        seen = np.isfinite(mean)
        moved = _followed(problem, multipliers, np.where(seen, mean, aimed), deviation, settings, (aimed, units))
        return np.where(seen, moved, multipliers)

    numbers = {**settings.sampled, "total": float(_epochs(problem, settings, kept=kept) * settings.steps)}
    numbers |= {f"aimed_{k}": float(limit) for k, limit in enumerate(aimed)}
    return OnPolicyTraining(
        method=method,
        estimator=estimator,
        aim=aim,
        follow=follow,
        multipliers=start if kept else np.maximum(start, LEAST / units),
        cost_units=units,
        settings={**numbers, "kept": float(kept)},
    )


def _epochs(problem: Problem, settings: Dynamics, *, kept: bool) -> int:
    allowed = settings.epochs if problem.rounds is None else min(settings.epochs, problem.rounds)
    return 1 if kept and problem.rounds is None else allowed


def _trained(
    problem: Problem, backend: TrainsOnPolicy, start: FloatArray, training: OnPolicyTraining, settings: Dynamics
) -> Generator[Iterate, None, DualState]:
    """Yield the policy after every epoch of training on its own answers, all of the budget.

    What one batch shows is too little to stop by.
    """
    assert problem.score is not None
    policy, state = problem.reference, DualState(training.multipliers, start)
    for epoch in range(int(training.settings["total"]) // settings.steps):
        policy = backend.train_on_policy(
            policy, problem.groups, training=training, score=problem.score, reference=problem.reference,
            seed=problem.seed, name=f"{epoch:02d}",
        )  # fmt: skip
        assert policy.report is not None
        row = policy.report.history[-1]
        multipliers = np.array([row[f"multiplier_{k}"] for k in range(len(start))])
        evaluation = problem.evaluate(policy)
        yield Iterate(epoch, multipliers, evaluation, policy)
        state = DualState(multipliers, start, history=(*state.history, observe(problem, multipliers, evaluation)))
    index, _ = select(state.history, Stopping())
    return resolve(state, "budget", state.history[index].multipliers)


def _following(
    problem: Problem, multipliers: FloatArray, row: Any, settings: Dynamics, units: FloatArray
) -> FloatArray:
    """Return the multipliers after one step, by the costs of the answers that were just used."""
    count = range(len(multipliers))
    mean = np.array([row[f"cost_{k}"] for k in count])
    deviation = np.array([row[f"cost_sd_{k}"] for k in count])
    return _followed(problem, multipliers, mean, deviation, settings, (problem.limits, units))


def _followed(
    problem: Problem,
    multipliers: FloatArray,
    mean: FloatArray,
    deviation: FloatArray,
    settings: Dynamics,
    known: tuple[FloatArray, FloatArray],
) -> FloatArray:
    """Return the multipliers after one step on their logarithm; ``known``: limits aimed at, raw units of multipliers.

    On a language model the aim leaves room for the certificate's bound, as every method's does; on a table the bound
    is exact and the aim is the limit.
    """
    aimed, units = known
    violation = mean + settings.inflation * deviation - aimed
    # alpha * raw multiplier * raw violation = alpha * reward unit * multiplier * violation, both normalised.
    rate = np.full_like(multipliers, settings.rate * problem.reward_unit)
    following = multiplier_step(multipliers, violation, rate=rate, largest=settings.largest / units)
    return np.maximum(following, LEAST / units)
