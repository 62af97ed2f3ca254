"""The loop of policy-gradient methods: steps of policy and multiplier in turn, a measured iterate an epoch."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dualign.errors import UsageError
from dualign.maths.dual import DualState, Stopping, out_of_budget, residual, resolve
from dualign.maths.policy_gradient import multiplier_step
from dualign.methods.loop import Fit, observe
from dualign.methods.one_shot import aimed_limits
from dualign.methods.options import COUNT, NOT_NEGATIVE, POSITIVE, Option, Options, Settings
from dualign.protocols import Improves, OnPolicyObjective, Policy, Practice, Practises, Problem
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

Follow = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]
"""(multipliers, means, SDs of the costs of the policy's answers) -> multipliers after one step."""


@dataclass(frozen=True, slots=True)
class Dynamics:
    """What a method's steps raise, and how its multiplier follows the costs of the policy's own answers."""

    method: str
    estimator: Literal["critic", "leave-one-out"]
    """How sampled answers are weighed."""
    aim: Callable[[FloatArray], OnPolicyObjective]
    """Multipliers, normalised -> what a step raises."""
    options: Options
    """With all of ``LOOP``; on a language model those of sampling too."""
    inflation: float = 0.0
    """Standard deviations that a cost's mean is raised by before it is held against the limit."""

    def count(self, option: Option) -> int:
        """Return the value of a whole number's option."""
        return int(self.options[option.name])


def on_policy_loop(problem: Problem, settings: Settings, how: Dynamics) -> Generator[Iterate, None, DualState]:
    """Yield an iterate an epoch; the rule ``fixed`` keeps its start, any other is replaced by the method's dynamics.

    A table takes exact steps until it settles; a language model samples.

    Raises:
        UsageError: the backend cannot train on answers of the policy.
    """
    kept = settings.rule.name == "fixed"
    if isinstance(problem.backend, Practises) and problem.score is not None:
        return (yield from _sampled_epochs(problem, settings.start, how, kept=kept))
    if kept:
        policy = trained_at(problem, how)(settings.start, "00")
        evaluation = problem.evaluate(policy)
        yield Iterate(0, settings.start, evaluation, policy)
        seen = observe(problem, settings.start, evaluation)
        return resolve(DualState(settings.start, settings.start, history=(seen,)), "converged", settings.start)
    return (yield from _exact_epochs(problem, settings.start, how))


def trained_at(problem: Problem, how: Dynamics) -> Fit:
    """Return the fit of one policy at multipliers that stay: exact on a table, ``steps`` of PPO on a model.

    Raises:
        UsageError: the backend cannot train on answers of the policy.
    """
    if isinstance(problem.backend, Practises) and problem.score is not None:
        return lambda multipliers, name: _sampled(
            problem, problem.reference, _training(problem, multipliers, how, kept=True), name
        )
    _improver(problem)

    def settled(multipliers: FloatArray, name: str) -> Policy:
        policy = problem.reference
        for _ in range(LONGEST):
            policy, row = _exact_step(problem, policy, how.aim(multipliers), name)
            if row["converged"]:
                break
        return policy

    return settled


def _improver(problem: Problem) -> Improves:
    if not isinstance(problem.backend, Improves):
        raise UsageError("method.name: needs answers of the policy in training, which this backend cannot give")
    return problem.backend


def _exact_step(problem: Problem, policy: Policy, objective: OnPolicyObjective, name: str) -> tuple[Policy, Any]:
    """Return the policy after one step, and the row of its report."""
    moved = _improver(problem).improve(
        policy, problem.groups, objective=objective, reference=problem.reference, name=name
    )
    assert moved.report is not None
    return moved, moved.report.history[0]


def _exact_epochs(problem: Problem, start: FloatArray, how: Dynamics) -> Generator[Iterate, None, DualState]:
    """Yield the policy after every epoch, until limits hold and neither multipliers nor policy move."""
    units, follow, stopping = _units(problem), _follow(problem, how, problem.limits), Stopping()
    multipliers = np.maximum(start, LEAST / units)
    policy, state, count = problem.reference, DualState(multipliers, start), range(len(start))
    row: Any = {}
    for epoch in range(how.count(EPOCHS)):
        for _ in range(how.count(STEPS)):
            policy, row = _exact_step(problem, policy, how.aim(multipliers), f"{epoch:02d}")
            mean, deviation = (np.array([row[f"{name}_{k}"] for k in count]) for name in ("cost", "cost_sd"))
            multipliers = follow(multipliers, mean, deviation)
        evaluation = problem.evaluate(policy)
        yield Iterate(epoch, multipliers, evaluation, policy)
        seen = observe(problem, multipliers, evaluation)
        state = DualState(multipliers, start, history=(*state.history, seen))
        held_up = multipliers * units > 2 * LEAST
        rest = residual(seen.violation, held_up)
        if how.inflation == 0 and np.all(rest <= stopping.noise(seen) / 2) and row["moved"] <= 1e-4:
            return resolve(state, "converged" if held_up.any() else "slack", multipliers)
    return out_of_budget(state, stopping)


def _sampled_epochs(
    problem: Problem, start: FloatArray, how: Dynamics, *, kept: bool
) -> Generator[Iterate, None, DualState]:
    """Yield the policy after every epoch of training on its own answers, all of the budget.

    What one batch shows is too little to stop by.
    """
    training = _training(problem, start, how, kept=kept)
    policy, state = problem.reference, DualState(training.multipliers, start)
    for epoch in range(_epochs(problem, how, kept=kept)):
        policy = _sampled(problem, policy, training, f"{epoch:02d}")
        assert policy.report is not None
        row = policy.report.history[-1]
        multipliers = np.array([row[f"multiplier_{k}"] for k in range(len(start))])
        evaluation = problem.evaluate(policy)
        yield Iterate(epoch, multipliers, evaluation, policy)
        state = DualState(multipliers, start, history=(*state.history, observe(problem, multipliers, evaluation)))
    return out_of_budget(state, Stopping())


def _sampled(problem: Problem, policy: Policy, training: Practice, name: str) -> Policy:
    """Return ``policy`` after a stretch of training on its own answers."""
    assert isinstance(problem.backend, Practises)
    assert problem.score is not None
    return problem.backend.practise(
        policy,
        problem.groups,
        practice=training,
        score=problem.score,
        reference=problem.reference,
        seed=problem.seed,
        name=name,
    )


def _training(problem: Problem, start: FloatArray, how: Dynamics, *, kept: bool) -> Practice:
    """Return an epoch's worth of training on sampled answers; ``kept``: the multipliers stay where they are.

    On a language model the aim leaves room for the certificate's bound, as every method's does; inflated costs leave
    it already.
    """
    units = _units(problem)
    aimed = problem.limits if how.inflation else aimed_limits(problem)
    numbers = {name: float(value) for name, value in how.options.items() if not isinstance(value, str)}
    numbers["total"] = float(_epochs(problem, how, kept=kept) * how.count(STEPS))
    numbers |= {f"aimed_{k}": float(limit) for k, limit in enumerate(aimed)}
    return Practice(
        method=how.method,
        estimator=how.estimator,
        aim=how.aim,
        follow=(lambda multipliers, *_: multipliers) if kept else _follow(problem, how, aimed),
        multipliers=start if kept else np.maximum(start, LEAST / units),
        cost_units=units,
        settings={**numbers, "kept": float(kept)},
    )


def _epochs(problem: Problem, how: Dynamics, *, kept: bool) -> int:
    if problem.rounds is None:
        return 1 if kept else how.count(EPOCHS)
    return min(how.count(EPOCHS), problem.rounds)


def _units(problem: Problem) -> FloatArray:
    """Return shape ``[constraint]``: a multiplier of 1 in raw units."""
    return problem.raw_multipliers(np.ones_like(problem.limits))


def _follow(problem: Problem, how: Dynamics, aimed: FloatArray) -> Follow:
    """Return one step of the multipliers on their logarithm; a cost that was not seen moves nothing."""
    units = _units(problem)
    # alpha * raw multiplier * raw violation = alpha * reward unit * multiplier * violation, both normalised.
    rate = np.full_like(units, float(how.options[RATE.name]) * problem.reward_unit)
    largest = float(how.options[LARGEST.name]) / units

    def follow(multipliers: FloatArray, mean: FloatArray, deviation: FloatArray) -> FloatArray:
        seen = np.isfinite(mean)
        violation = np.where(seen, mean, aimed) + how.inflation * deviation - aimed
        moved = multiplier_step(multipliers, violation, rate=rate, largest=largest)
        return np.where(seen, np.maximum(moved, LEAST / units), multipliers)

    return follow
