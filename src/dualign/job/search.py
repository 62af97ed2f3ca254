"""From scored reference samples to evaluated policies: units, plan, rounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dualign.errors import InfeasibleError
from dualign.job.job import Job
from dualign.job.measurement import Scored, evaluate, matches, normalised, slice_of, transformed
from dualign.job.openings import looks
from dualign.job.phases import JournalledBackend, score_rows, scored, scored_pairs, with_log_ratios
from dualign.maths.dual import DualRule, Stopping, margin
from dualign.maths.dual_rules import DUAL_RULES
from dualign.maths.functionals import ConditionalValueAtRisk, Functional
from dualign.maths.one_shot import OneShot, one_shot
from dualign.maths.preference import Scale, fit_scale
from dualign.methods.c_dpo import recipe_of, relabelled
from dualign.methods.loop import fitted, mixed_at_limit
from dualign.methods.options import Settings
from dualign.methods.table import METHODS
from dualign.protocols import Policy, Problem, Scores
from dualign.records import Constraint, Evaluation, FloatArray, Group, Iterate, Prompt, Response

WIDTH_AT_200 = 0.3
"""The betting bound is about 1.3 times as wide as t at 200 prompts, 1.1 at 2,000 (bench/certificates.py)."""


GRADIENT_STEP = 0.1
"""Of the ``gradient`` rule, for scores in units of their SDs; the best one depends on beta and on the slice."""


@dataclass(frozen=True)
class Search:
    """What the rounds start from: fitted once on the reference samples, never refitted."""

    job: Job
    train: Scored
    scale: Scale
    baseline: FloatArray
    """Shape ``[tune prompt, constraint]``: mean cost of the reference on each tune prompt."""

    @property
    def beta(self) -> float:
        """Return beta for raw scores."""
        return self.job.config.training.beta * float(self.scale.reward_sd)

    @property
    def limits(self) -> FloatArray:
        """Return the raw limits, shape ``[constraint]``."""
        return np.array([constraint.limit for constraint in self.job.constraints])

    def raw(self, multipliers: FloatArray) -> FloatArray:
        """Return normalised multipliers in raw units: lambda = lambda' s_r / s_c."""
        return np.asarray(multipliers * self.scale.reward_sd / self.scale.cost_sds)

    def groups(self) -> list[Group]:
        """Return the training groups: costs as the functionals transform them, in normalised units."""
        job = self.job
        fitted = [training_functional(job, self.train, i) for i in range(len(job.constraints))]
        values = transformed(self.train.costs, fitted, self.train.costs.mean(axis=1))
        for i, constraint in enumerate(job.constraints):
            outside = np.setdiff1d(np.arange(len(values)), slice_of(self.train.prompts, constraint.where))
            values[outside, :, i] = 0.0
        reward = self.train.reward / self.scale.reward_sd
        costs = values / self.scale.cost_sds
        return [replace(group, reward=reward[k], costs=costs[k]) for k, group in enumerate(self.train.groups())]

    def margin(self, evaluation: Evaluation) -> FloatArray:
        """Return how far below the normalised limits the dual aims, from the spread over tune prompts."""
        job = self.job
        delta = looks(job).spent(1 - job.config.certificate.confidence)
        margins = []
        for i, constraint in enumerate(job.constraints):
            n_tune, n_calibration = (_units(job.splits[name], constraint) for name in ("tune", "calibration"))
            width = 1 + WIDTH_AT_200 * np.sqrt(200 / max(n_calibration, 1))
            spread = float(evaluation.cost_spreads[i])
            margins.append(margin(spread, n_tune=n_tune, n_calibration=n_calibration, delta=delta, width_ratio=width))
        return np.array(margins)

    def samples(self, policy: Policy) -> Scored:
        """Return the policy's scored responses to the tune prompts that can carry cost."""
        job = self.job
        made = scored(job, policy, tune_prompts(job), job.config.evaluation.responses_per_prompt, "tune")
        return with_log_ratios(job, policy, made, "tune")

    def measure(self, policy: Policy) -> Evaluation:
        """Return the policy's figures on the tune prompts that can carry cost, in raw units."""
        job, made = self.job, self.samples(policy)
        return evaluate(made, job.constraints, job.functionals, beta=self.beta, baseline=self.baseline)

    def plan(self) -> OneShot:
        """Return the one-shot dual of the reference samples for the raw limits, in normalised units."""
        return self._one_shot(self.limits / self.scale.cost_sds)

    def aimed_plan(self) -> OneShot:
        """Return the one-shot dual for where the rounds aim: below the limits by the reference's margin."""
        reference = normalised(self.measure(self.job.reference), self.scale)
        return self._one_shot(self.limits / self.scale.cost_sds - self.margin(reference))

    def _one_shot(self, limits: FloatArray) -> OneShot:
        groups = self.groups()
        return one_shot(
            np.stack([group.reward for group in groups]),
            np.stack([group.costs for group in groups]),
            limits=limits * self._shares(),
            beta=self.job.config.training.beta,
        )

    def _shares(self) -> FloatArray:
        """Return each slice's share of the prompts: it turns limits on slices into limits on means over all."""
        train = self.train.prompts
        return np.array([len(slice_of(train, c.where)) / len(train) for c in self.job.constraints])

    def problem(self) -> Problem:
        """Return what the method is given: everything in normalised units."""
        training = self.job.config.training
        return Problem(
            backend=JournalledBackend(self.job, self.score),
            groups=self.groups(),
            limits=self.limits / self.scale.cost_sds,
            reference=self.job.reference,
            evaluate=lambda policy: normalised(self.measure(policy), self.scale),
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
        reward = score_rows(job.reward, prompts, responses)
        inside = np.array([[matches(prompt, c.where) for c in job.constraints] for prompt in prompts])
        costs = np.zeros((*reward.shape, len(job.constraints)))
        for i, scorer in enumerate(job.costs):
            rows = [k for k in range(len(prompts)) if inside[k, i]]
            if not rows:
                continue
            raw = score_rows(scorer, [prompts[k] for k in rows], [responses[k] for k in rows])
            places = [known.get(prompts[k].id) for k in rows]
            mean = [0.0 if place is None else self.train.costs[place, :, i].mean() for place in places]
            functional = training_functional(job, self.train, i)
            costs[rows, :, i] = functional.transform(raw, np.array(mean)[:, None])
        return Scores(reward / self.scale.reward_sd, costs / self.scale.cost_sds, inside)


def _units(prompts: Sequence[Prompt], constraint: Constraint) -> int:
    """Return how many units of independence a constraint's slice holds."""
    return len({prompts[k].cluster for k in slice_of(prompts, constraint.where)})


def tune_prompts(job: Job) -> list[Prompt]:
    """Return the tune prompts in some constraint's slice: the dual step pays for no others."""
    tune = job.splits["tune"]
    kept = sorted({int(k) for constraint in job.constraints for k in slice_of(tune, constraint.where)})
    return [tune[k] for k in kept]


def prepare(job: Job) -> Search:
    """Return the search: samples of the reference, their units, the reference on tune.

    Raises:
        InfeasibleError: a limit below every cost that the reference was seen to have.
    """
    train = training_answers(job)
    tune = scored(job, job.reference, tune_prompts(job), job.config.evaluation.responses_per_prompt, "tune")
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


def training_answers(job: Job) -> Scored:
    """Return what pairs are made of: the given pairs, else the reference's own samples."""
    if job.pairs:
        return scored_pairs(job)
    return scored(job, job.reference, job.splits["train"], job.config.sampling.responses_per_prompt, "train")


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


def rounds(search: Search, start: FloatArray) -> Iterator[Iterate]:
    """Yield the method's iterates; ``start`` and the iterates' multipliers are normalised."""
    method, problem = search.job.config.method, search.problem()
    found = []
    for iterate in METHODS[method.name].run(problem, settings_of(search.job, start)):
        found.append(iterate)
        yield iterate
    mixed = mixed_at_limit(problem, found) if method.interpolate else None
    if mixed is not None:
        yield mixed


def settings_of(job: Job, start: FloatArray) -> Settings:
    """Return what the config's method is told; ``start`` is normalised."""
    method = job.config.method
    return Settings(dual_rule(job), start, method.loss, method.labels, method.temperature, method.options)


def dual_rule(job: Job) -> DualRule:
    """Return the config's rule; none named: bracket for one limit, projected Newton for several."""
    method = job.config.method
    name = method.dual or ("bracket" if len(job.constraints) == 1 else "projected_newton")
    stopping = Stopping(largest=method.max_multiplier, budget=method.max_rounds, multiplier_tolerance=0.05)
    if name == "gradient":
        return DUAL_RULES[name](step=GRADIENT_STEP if method.step is None else method.step, stopping=stopping)
    return DUAL_RULES[name](stopping=stopping)


def first_multipliers(search: Search) -> FloatArray:
    """Return the normalised start: the config's raw number, or the plan's (1 where the plan is not feasible)."""
    start = search.job.config.method.start
    count = len(search.job.constraints)
    if start != "one-shot":
        return np.full(count, float(start)) * search.scale.cost_sds / search.scale.reward_sd
    plan = search.aimed_plan()
    found = plan.multipliers if plan.feasible else np.ones(count)
    return np.clip(np.where(found > 0, found, 0.25), 0.0, search.job.config.method.max_multiplier)


def extra_round(search: Search, multipliers: FloatArray, name: str, *, labels: str | None = None) -> Iterate:
    """Return one more policy at fixed normalised multipliers, for comparison; its figures are normalised.

    ``labels``: another label mode than the config's.
    """
    settings = settings_of(search.job, multipliers)
    problem = recipe_of(settings.loss).prepare(search.problem())
    objective = relabelled(multipliers, problem.beta, replace(settings, labels=labels or settings.labels))
    policy = fitted(problem, objective, name)
    return Iterate(-1, multipliers, problem.evaluate(policy), policy)
