"""From scored samples of the reference to measured policies: units, plan, rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dualign.errors import InfeasibleError
from dualign.job.measurement import Scored, constrained, evaluate, inside, normalised, slice_of, transformed
from dualign.job.phases import (
    Job,
    looks,
    raw_scores,
    read_choice,
    reference_answers,
    sampled,
    scored,
    select,
    training_answers,
    with_log_ratios,
)
from dualign.job.policies import JournalledBackend
from dualign.maths.dual import Stopping, margin
from dualign.maths.dual_rules import DUAL_RULES
from dualign.maths.exact import FiniteProblem
from dualign.maths.functionals import ConditionalValueAtRisk, Functional
from dualign.maths.one_shot import OneShot, from_problem
from dualign.maths.preference import Scale, fit_scale
from dualign.methods.c_dpo import recipe_of, relabelled
from dualign.methods.loop import fitted, mixed_at_limit
from dualign.methods.options import Settings
from dualign.methods.table import METHODS
from dualign.protocols import Policy, Problem, Scores
from dualign.records import Evaluation, FloatArray, Group, Iterate, Prompt, Response

WIDTH_AT_200 = 0.3
"""The betting bound is about 1.3 times as wide as t at 200 prompts, 1.1 at 2,000 (bench/certificates.py)."""


GRADIENT_STEP = 0.1
"""Of the ``gradient`` rule, for scores in units of their SDs; the best one depends on beta and on the slice."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One policy of the search."""

    normalised: Iterate
    """As the method knows it: multipliers and figures in normalised units."""
    raw: Iterate
    """The same policy in the units of the scorers and limits."""

    @property
    def policy(self) -> Policy:
        """Return the policy itself."""
        policy = self.raw.policy
        assert isinstance(policy, Policy)
        return policy


@dataclass(frozen=True)
class Search:
    """What the rounds start from: fitted once on the reference samples, never refitted."""

    job: Job
    train: Scored
    scale: Scale
    baseline: FloatArray
    """Shape ``[tune prompt, constraint]``: mean cost of the reference on each tune prompt."""

    @cached_property
    def reference(self) -> Evaluation:
        """Return the reference's figures on the tune prompts that can carry cost, in raw units."""
        return self.measure(self.job.reference)

    @property
    def beta(self) -> float:
        """Return beta for raw scores."""
        return self.job.config.training.beta * float(self.scale.reward_sd)

    @property
    def limits(self) -> FloatArray:
        """Return the raw limits, shape ``[constraint]``."""
        return np.array([constraint.limit for constraint in self.job.constraints])

    def groups(self) -> list[Group]:
        """Return the training groups: costs as the functionals transform them, in normalised units."""
        train = self.train
        reward = train.reward / self.scale.reward_sd
        costs = self._labelled(train.prompts, train.costs, train.costs.mean(axis=1))
        return [replace(group, reward=reward[k], costs=costs[k]) for k, group in enumerate(train.groups())]

    def margin(self, evaluation: Evaluation) -> FloatArray:
        """Return how far below the normalised limits the dual aims, from the spread over tune prompts."""
        job = self.job
        delta = looks(job).spent(1 - job.config.certificate.confidence)
        margins = []
        for i, constraint in enumerate(job.constraints):
            slices = (constrained(job.splits[name], [constraint]) for name in ("tune", "calibration"))
            n_tune, n_calibration = (len({prompt.cluster for prompt in prompts}) for prompts in slices)
            width = 1 + WIDTH_AT_200 * np.sqrt(200 / max(n_calibration, 1))
            spread = float(evaluation.cost_spreads[i])
            margins.append(margin(spread, n_tune=n_tune, n_calibration=n_calibration, delta=delta, width_ratio=width))
        return np.array(margins)

    def answers(self, policy: Policy, prompts: Sequence[Prompt], n: int, stage: str) -> Scored:
        """Return ``n`` scored responses of any policy; of one that selects, the best of as many of the reference's.

        Raises:
            ScorerError: a scorer failed; what was sampled stays on disk.
        """
        job, choice = self.job, read_choice(policy)
        if choice is None:
            return scored(job, policy, prompts, sampled(job, policy, prompts, n, stage), stage)

        def chosen() -> list[list[Response]]:
            candidates = sampled(job, job.reference, prompts, n * choice.n, f"{stage}-best-of-{choice.n}")
            job.tell(f"choosing {n} x {len(prompts)} responses of {policy.name} ({stage})")
            return select(choice, candidates, self.score(prompts, candidates))

        return scored(job, policy, prompts, sampled(job, policy, prompts, n, stage, draw=chosen), stage)

    def samples(self, policy: Policy) -> Scored:
        """Return the policy's scored responses to the tune prompts that can carry cost."""
        job = self.job
        made = self.answers(policy, tune_prompts(job), job.config.evaluation.responses_per_prompt, "tune")
        return with_log_ratios(job, policy, made, "tune")

    def measure(self, policy: Policy) -> Evaluation:
        """Return the policy's figures on the tune prompts that can carry cost, in raw units."""
        job, made = self.job, self.samples(policy)
        return evaluate(made, job.constraints, job.functionals, beta=self.beta, baseline=self.baseline)

    def measured(self, iterate: Iterate, evaluation: Evaluation) -> Measured:
        """Return a policy of the method with its raw figures."""
        raw = Iterate(iterate.round, self.scale.raw_multipliers(iterate.multipliers), evaluation, iterate.policy)
        return Measured(normalised=iterate, raw=raw)

    def plan(self) -> OneShot:
        """Return the one-shot dual of the reference samples for the raw limits, in normalised units."""
        return self._one_shot(self.limits / self.scale.cost_sds)

    def aimed_plan(self) -> OneShot:
        """Return the one-shot dual for where the rounds aim: below the limits by the reference's margin."""
        reference = normalised(self.reference, self.scale)
        return self._one_shot(self.limits / self.scale.cost_sds - self.margin(reference))

    def _one_shot(self, limits: FloatArray) -> OneShot:
        groups = self.groups()
        reward = np.stack([group.reward for group in groups])
        problem = FiniteProblem(
            log_reference=np.full(reward.shape, -np.log(reward.shape[1])),
            reward=reward,
            costs=np.stack([group.costs for group in groups]),
            prompt_weights=np.full(len(reward), 1 / len(reward)),
            limits=limits * self._shares(),
            beta=self.job.config.training.beta,
        )
        return from_problem(problem, draws=True)

    def _shares(self) -> FloatArray:
        """Return each slice's share of the prompts: it turns limits on slices into limits on means over all."""
        train = self.train.prompts
        return np.array([len(slice_of(train, c.where)) / len(train) for c in self.job.constraints])

    def problem(self, measure: Callable[[Policy], Evaluation] | None = None) -> Problem:
        """Return what the method is given: everything in normalised units; ``measure`` stands in for the search's."""
        measure = measure or self.measure
        training = self.job.config.training
        return Problem(
            backend=JournalledBackend(self.job),
            groups=self.groups(),
            limits=self.limits / self.scale.cost_sds,
            reference=self.job.reference,
            evaluate=lambda policy: normalised(measure(policy), self.scale),
            beta=training.beta,
            seed=self.job.config.run.seed,
            margin=self.margin,
            shares=self._shares(),
            cost_units=self.scale.cost_sds,
            reward_unit=self.scale.reward_sd,
            score=self.score,
            rounds=self.job.config.method.max_rounds,
        )

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> Scores:
        """Return scores of answers as those of the training groups: costs as functionals transform them, normalised.

        A limit relative to the reference takes the reference's own cost on each prompt, known for training prompts;
        for others 0, which changes no choice among answers to one prompt.
        """
        job, known = self.job, {prompt.id: k for k, prompt in enumerate(self.train.prompts)}
        reward, costs = raw_scores(job, prompts, responses)
        own, none = self.train.costs.mean(axis=1), np.zeros(len(job.constraints))
        baseline = np.array([own[known[prompt.id]] if prompt.id in known else none for prompt in prompts])
        labelled = self._labelled(prompts, costs, baseline)
        return Scores(reward / self.scale.reward_sd, labelled, inside(prompts, job.constraints))

    def _labelled(self, prompts: Sequence[Prompt], costs: FloatArray, baseline: FloatArray) -> FloatArray:
        """Return raw costs as pairs are labelled by them: transformed, normalised, 0 outside their slice."""
        fitted = [training_functional(self.job, self.train, i) for i in range(len(self.job.constraints))]
        seen = inside(prompts, self.job.constraints)[:, None, :]
        return np.where(seen, transformed(costs, fitted, baseline), 0.0) / self.scale.cost_sds


def tune_prompts(job: Job) -> list[Prompt]:
    """Return the tune prompts in some constraint's slice: the dual step pays for no others."""
    return constrained(job.splits["tune"], job.constraints)


def prepare(job: Job) -> Search:
    """Return the search: samples of the reference, their units, the reference on tune.

    Raises:
        InfeasibleError: a limit below every cost that the reference was seen to have.
    """
    train = training_answers(job)
    tune = reference_answers(job, tune_prompts(job), job.config.evaluation.responses_per_prompt, "tune")
    for i, constraint in enumerate(job.constraints):
        costs, values = _training_costs(job, train, i)
        # a policy's own tail may lie below the threshold that was fitted on the reference
        tail = isinstance(job.functionals[i], ConditionalValueAtRisk)
        lowest = float((costs if tail else values).min())
        if constraint.limit < lowest:
            raise InfeasibleError(
                f"constraints: limit {constraint.limit:g} of {constraint.name!r} is below the lowest cost of any "
                f"reference sample, {lowest:g}; raise the limit or warm-start the model"
            )
    return Search(job, train, _scale(job, train), tune.costs.mean(axis=1))


def training_functional(job: Job, train: Scored, i: int) -> Functional:
    """Return the i-th functional as pairs are labelled by it, fitted on the reference samples of its slice.

    The threshold of a tail (CVaR) is the reference's VaR, or the limit where that is lower: above the limit, no
    policy could be labelled into keeping it. Evaluations refit the threshold on each policy's own costs.
    """
    constraint = job.constraints[i]
    fitted = job.functionals[i].fit(train.costs[slice_of(train.prompts, constraint.where), :, i])
    if isinstance(fitted, ConditionalValueAtRisk) and fitted.threshold is not None:
        return replace(fitted, threshold=min(fitted.threshold, constraint.limit))
    return fitted


def _training_costs(job: Job, train: Scored, i: int) -> tuple[FloatArray, FloatArray]:
    """Return the i-th costs of the reference samples in the slice, raw and transformed, ``[prompt, response]``."""
    costs = train.costs[slice_of(train.prompts, job.constraints[i].where), :, i]
    return costs, training_functional(job, train, i).transform(costs, costs.mean(axis=1, keepdims=True))


def _scale(job: Job, train: Scored) -> Scale:
    """Return the pooled within-prompt SDs: of the reward over all prompts, of each cost over its slice."""
    reward = fit_scale(train.groups()).reward_sd
    sds = []
    for i, constraint in enumerate(job.constraints):
        _, values = _training_costs(job, train, i)
        sd = float(np.sqrt(values.var(axis=1, ddof=1).mean()))
        if not sd > 0:
            raise InfeasibleError(
                f"constraints: the cost of {constraint.name!r} is the same for all samples of every prompt: "
                "no preference can move it; warm-start the model so that its answers differ"
            )
        sds.append(sd)
    return Scale(reward_sd=float(reward), cost_sds=np.array(sds))


def rounds(search: Search, start: FloatArray) -> Iterator[Measured]:
    """Yield the policies of the method as they are measured; ``start`` is normalised."""
    method, raw = search.job.config.method, dict[str, Evaluation]()

    def measure(policy: Policy) -> Evaluation:
        raw[policy.name] = search.measure(policy)
        return raw[policy.name]

    problem, found = search.problem(measure), list[Iterate]()
    for iterate in METHODS[method.name].run(problem, settings_of(search.job, start)):
        found.append(iterate)
        yield search.measured(iterate, raw[iterate.policy.name])
    mixed = mixed_at_limit(problem, found) if method.interpolate else None
    if mixed is not None:
        yield search.measured(mixed, raw[mixed.policy.name])


def settings_of(job: Job, start: FloatArray) -> Settings:
    """Return what the config's method is told; ``start`` is normalised.

    No dual rule named: bracket for one limit, projected Newton for several.
    """
    method = job.config.method
    name = method.dual or ("bracket" if len(job.constraints) == 1 else "projected_newton")
    stopping = Stopping(largest=method.max_multiplier, budget=method.max_rounds, multiplier_tolerance=0.05)
    step = {"step": GRADIENT_STEP if method.step is None else method.step} if name == "gradient" else {}
    rule = DUAL_RULES[name](**step, stopping=stopping)
    return Settings(rule, start, method.loss, method.labels, method.temperature, method.options)


def first_multipliers(search: Search) -> FloatArray:
    """Return the normalised start: the config's raw number, or the plan's (1 where the plan is not feasible)."""
    start = search.job.config.method.start
    count = len(search.job.constraints)
    if start != "one-shot":
        return search.scale.multipliers(np.full(count, float(start)))
    plan = search.aimed_plan()
    found = plan.multipliers if plan.feasible else np.ones(count)
    return np.clip(np.where(found > 0, found, 0.25), 0.0, search.job.config.method.max_multiplier)


def extra_round(search: Search, multipliers: FloatArray, name: str, *, labels: str | None = None) -> Measured:
    """Return one more policy at fixed normalised multipliers, for comparison; ``labels``: in another label mode."""
    settings = settings_of(search.job, multipliers)
    problem = recipe_of(settings.loss).prepare(search.problem())
    objective = relabelled(multipliers, problem.beta, replace(settings, labels=labels or settings.labels))
    policy = fitted(problem, objective, name)
    evaluation = search.measure(policy)
    return search.measured(Iterate(-1, multipliers, normalised(evaluation, search.scale), policy), evaluation)
