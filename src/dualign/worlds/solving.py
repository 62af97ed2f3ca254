"""Any method on a finite world, measured against the exact optimum: what ``dualign solve`` prints."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from dualign.errors import UsageError
from dualign.hashing import plain
from dualign.maths.dual import DualRule, DualState, Stopping, fixed
from dualign.maths.dual_rules import DUAL_RULES
from dualign.maths.exact import (
    Expectations,
    FiniteProblem,
    Optimum,
    expectations,
    optimum,
    prompt_covariances,
    prompt_kl,
)
from dualign.maths.one_shot import from_problem
from dualign.maths.preference import Scale, fit_scale, flip_curve, label_logit, relabel, saturation_share
from dualign.methods.loop import mixed_at_limit
from dualign.methods.options import Settings, filled, unknown
from dualign.methods.table import METHODS, Method
from dualign.protocols import Backend, Policy, Problem
from dualign.records import Evaluation, FloatArray, Iterate
from dualign.worlds.file import World
from dualign.worlds.tabular import TabularBackend

TOLERANCE = 1e-3
"""A limit that is broken by less than this, in within-prompt SDs of its cost, counts as met."""
MULTIPLIER_TOLERANCE = 0.01
"""Largest error of a multiplier, raw and normalised (or 1 % of it, where that is more)."""
GRADIENT_BUDGET = 400
"""Policies of a fixed-step rule; the others need about ten."""
HOPELESS_BUDGET = 10
"""Policies of a world known to be infeasible: enough to see its lowest costs."""
ONE_CONSTRAINT = ("bracket", "newton")


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveSettings:
    """What a user may choose."""

    method: str = "c-dpo"
    dual: str | None = None
    """Dual rule; none: ``bracket`` for one limit, ``projected_newton`` for several."""
    start: float | Literal["one-shot"] = 1.0
    """First multiplier after 0, raw; ``one-shot``: the dual of the reference's own responses."""
    multipliers: FloatArray | None = None
    """Shape ``[constraint]``, raw: hand-picked, so that nothing is searched."""
    step: float | None = None
    """Step of ``gradient`` in normalised units; none: 1/L, with which the dual value never rises."""
    loss: str = "dpo"
    labels: str = "soft"
    temperature: float = 1.0
    """Label temperature; the policy that is sought stays that of the world's beta."""
    seed: int = 0
    interpolate: bool = False
    """One more policy without training: the mix of the two on either side of the limit."""
    options: Mapping[str, float | str] = field(default_factory=dict)
    """Settings of the method's own; those not named have its defaults."""


@dataclass(frozen=True, slots=True)
class Solution:
    """The figures to print, and the policy ``[prompt, response]`` they are about."""

    figures: Mapping[str, Any]
    log_probs: FloatArray
    feasible: bool
    names: tuple[str, ...]
    """Of the iterates' policies, as the backend was told them."""
    chosen: str
    """The one that the figures are about."""


@dataclass(frozen=True, slots=True)
class _Setting:
    """A world in raw and in normalised units, and what was chosen for it."""

    world: World
    chosen: SolveSettings
    """With every option of the method."""
    method: Method
    raw: FiniteProblem
    scaled: FiniteProblem
    scale: Scale
    optimum: Optimum

    def named(self, values: FloatArray) -> dict[str, float | None]:
        """Return ``values`` by constraint; numbers that JSON does not know become null."""
        return dict(zip(self.world.names, plain(values), strict=True))

    def achieved(self, multipliers: FloatArray, found: Expectations) -> dict[str, Any]:
        """Return the figures of a policy at raw ``multipliers``."""
        return {
            "multipliers": self.named(multipliers),
            "reward": found.reward,
            "costs": self.named(found.costs),
            "kl": found.kl,
            "objective": found.objective,
        }


def solve(world: World, settings: SolveSettings, *, backend: Backend | None = None) -> Solution:
    """Return what the method finds in ``world``; scores are scaled by their within-prompt SDs, figures are raw.

    ``backend``: what fits the tables; none: a ``TabularBackend`` of the world.

    Raises:
        UsageError: an unknown method, rule, loss or label mode, or a choice that does not fit the world.
    """
    if settings.method not in METHODS:
        raise UsageError(unknown("method", settings.method, METHODS))
    setting = _prepare(world, settings, METHODS[settings.method])
    method, settings = setting.method, setting.chosen
    rule, start = _rule(setting), _start(setting)
    if method.weight == "given" and settings.multipliers is None:
        method = next(row for row in METHODS.values() if row.weight == "dual rule")
    problem = _problem(setting, backend or TabularBackend(world))
    told = Settings(rule, start, settings.loss, settings.labels, settings.temperature, settings.options)
    iterates, state = _collect(method.run(problem, told))
    mixed = mixed_at_limit(problem, iterates) if settings.interpolate else None
    iterates += [] if mixed is None else [mixed]
    chosen = _choose(iterates, state, setting)
    figures = _figures(setting, iterates, chosen) | {"parameters": _parameters(setting, told, state, iterates[chosen])}
    names = tuple(str(iterate.policy.name) for iterate in iterates)
    return Solution(figures, iterates[chosen].policy.state, setting.optimum.feasible, names, names[chosen])


def _prepare(world: World, settings: SolveSettings, method: Method) -> _Setting:
    chosen = replace(settings, options=filled(method.name, method.options, settings.options))
    raw = world.problem()
    probabilities = [np.array([response.reference for response in prompt.responses]) for prompt in world.prompts]
    scale = fit_scale(world.groups(), probabilities=probabilities)
    scaled = replace(
        raw,
        reward=scale.reward(raw.reward),
        costs=scale.costs(raw.costs),
        limits=scale.costs(raw.limits),
        beta=scale.beta(raw.beta),
    )
    return _Setting(world, chosen, method, raw, scaled, scale, optimum(raw))


def _problem(setting: _Setting, backend: Backend) -> Problem:
    """Return the method's problem, normalised; evaluations are sums over all responses, without error or margin."""
    scale, scaled = setting.scale, setting.scaled
    reference = TabularBackend(setting.world).reference
    groups = [
        replace(group, reward=scale.reward(group.reward), costs=scale.costs(group.costs))
        for group in setting.world.groups()
    ]

    def evaluate(policy: Policy) -> Evaluation:
        found = expectations(scaled, policy.state)
        means = np.einsum("jk,jki->ji", np.exp(policy.state), scaled.costs)
        spread = np.einsum("j,ji->i", scaled.prompt_weights, (means - found.costs) ** 2)
        covariance = np.einsum("j,jhi->hi", scaled.prompt_weights, prompt_covariances(scaled, policy.state))
        none = np.zeros(len(scaled.limits))
        return Evaluation(
            reward=found.reward,
            reward_error=0.0,
            costs=found.costs,
            cost_errors=none,
            cost_spreads=np.sqrt(spread),
            kl=found.kl,
            kl_error=0.0,
            n_prompts=len(means),
            slope=-covariance / scaled.beta,
        )

    return Problem(
        backend,
        groups,
        scaled.limits,
        reference,
        evaluate,
        scaled.beta,
        setting.chosen.seed,
        cost_units=scale.cost_sds,
        reward_unit=scale.reward_sd,
    )


def _rule(setting: _Setting) -> DualRule:
    settings, method = setting.chosen, setting.method
    several = len(setting.world.names) > 1
    name = settings.dual or ("projected_newton" if several else "bracket")
    if name not in DUAL_RULES:
        raise UsageError(unknown("--dual", name, DUAL_RULES))
    if settings.multipliers is not None:
        if method.weight == "none":
            raise UsageError(f"--multiplier: {method.name} uses none; --method fixed takes one")
        if settings.dual not in (None, "fixed"):
            raise UsageError(f"--multiplier: nothing is left for --dual {name} to find; give one of the two")
        return fixed(setting.scale.multipliers(settings.multipliers))
    if name == "fixed":
        raise UsageError("--dual fixed: needs --multiplier [NAME=]X, the multiplier to keep")
    if several and name in ONE_CONSTRAINT:
        count = len(setting.world.names)
        raise UsageError(f"--dual {name}: takes one limit, the world has {count}; use projected_newton")
    share = min(1.0, float((setting.scale.cost_sds / setting.scale.reward_sd).min()))
    budget = GRADIENT_BUDGET if name == "gradient" else Stopping().budget
    stopping = Stopping(
        violation_tolerance=TOLERANCE,
        multiplier_tolerance=MULTIPLIER_TOLERANCE * share,
        budget=budget if setting.optimum.feasible else HOPELESS_BUDGET,
    )
    if name == "gradient":
        step = 1 / curvature_bound(setting.scaled) if settings.step is None else settings.step
        if not (step > 0 and np.isfinite(step)):
            raise UsageError(f"--step: must be a number above 0, got {step}")
        return DUAL_RULES[name](step=step, stopping=stopping)
    return DUAL_RULES[name](stopping=stopping)


def curvature_bound(problem: FiniteProblem) -> float:
    """Return L, a bound on the largest eigenvalue of the dual's Hessian: ``max_x sum_i range_x(c_i)^2 / (4 beta)``.

    By Popoviciu's inequality for the variance of a bounded variable.
    """
    support = np.isfinite(problem.log_reference)[:, :, None]
    highest = np.where(support, problem.costs, -np.inf).max(axis=1)
    lowest = np.where(support, problem.costs, np.inf).min(axis=1)
    bound = float(((highest - lowest) ** 2).sum(axis=1).max()) / (4 * problem.beta)
    return bound if bound > 0 else 1.0


def _start(setting: _Setting) -> FloatArray:
    settings = setting.chosen
    count = len(setting.world.names)
    if settings.multipliers is not None:
        return setting.scale.multipliers(settings.multipliers)
    if settings.start == "one-shot":
        found = from_problem(setting.scaled, draws=False)
        return found.multipliers if found.feasible else setting.scale.multipliers(np.ones(count))
    if not (np.isfinite(settings.start) and settings.start >= 0):
        raise UsageError(f"--start: must be a number of 0 or more, or one-shot, got {settings.start}")
    return setting.scale.multipliers(np.full(count, settings.start))


def _collect(run: Generator[Iterate, None, DualState]) -> tuple[list[Iterate], DualState]:
    iterates = []
    while True:
        try:
            iterates.append(next(run))
        except StopIteration as ended:
            return iterates, ended.value


def _worst_violation(iterate: Iterate, setting: _Setting) -> float:
    return float((iterate.evaluation.costs - setting.scaled.limits).max())


def _choose(iterates: Sequence[Iterate], state: DualState, setting: _Setting) -> int:
    """Return the index of the policy to keep: among those whose limits hold, the rule's answer, else the best.

    Best is the largest reward - beta * KL, which is what the problem maximises. Where no limit holds: the closest.
    """
    worst = [_worst_violation(iterate, setting) for iterate in iterates]
    held = [k for k, violation in enumerate(worst) if violation <= TOLERANCE]
    if not held:
        return int(np.argmin(worst))
    for k in held:
        # Within the tolerance a smaller multiplier always scores a little better; the root was asked for.
        if state.status == "converged" and np.array_equal(iterates[k].multipliers, state.multipliers):
            return k
    beta = setting.scaled.beta
    return max(held, key=lambda k: iterates[k].evaluation.reward - beta * iterates[k].evaluation.kl)


def _figures(setting: _Setting, iterates: Sequence[Iterate], chosen: int) -> dict[str, Any]:
    best, selected = setting.optimum, iterates[chosen]
    distance = divergence(setting.raw, selected.policy.state, best.log_probs) if best.feasible else float("nan")
    rows = [_point(setting, iterate) for iterate in iterates]
    row = rows[chosen]
    return {
        "method": setting.chosen.method,
        "beta": setting.raw.beta,
        **{key: row[key] for key in ("multipliers", "reward", "costs", "kl", "objective")},
        "limits": dict(setting.world.limits),
        "feasible": best.feasible,
        "limits_met": row["limits_met"],
        "rounds": len(iterates),
        "optimum": setting.achieved(best.multipliers, best.expectations),
        "attainable": setting.named(best.attainable),
        "gap": plain(setting.raw.beta * distance),
        "distance": plain(distance),
        "fit_distance": row["fit_distance"],
        "iterates": rows,
        **_labels(setting, selected),
    }


def _point(setting: _Setting, iterate: Iterate) -> dict[str, Any]:
    multipliers = setting.scale.raw_multipliers(iterate.multipliers)
    fit_distance = float("nan")
    if setting.chosen.loss == "dpo" and setting.chosen.labels == "soft":
        closed_form = setting.method.target(setting.raw, multipliers, setting.chosen.options)
        fit_distance = divergence(setting.raw, iterate.policy.state, closed_form)
    return {
        **setting.achieved(multipliers, expectations(setting.raw, iterate.policy.state)),
        "limits_met": _worst_violation(iterate, setting) <= TOLERANCE,
        "fit_distance": plain(fit_distance),
        "fit_converged": bool(iterate.policy.report.history[0]["converged"]),
    }


def _labels(setting: _Setting, selected: Iterate) -> dict[str, Any]:
    """Return what the labels were like, and what a user should be warned of."""
    scaled, settings = setting.scaled, setting.chosen
    first, second = np.triu_indices(scaled.reward.shape[1], k=1)
    real = np.isfinite(scaled.log_reference)[:, second]
    scores = relabel(scaled.reward, scaled.costs, selected.multipliers)
    logits = label_logit(scores[:, first], scores[:, second], temperature=settings.temperature)[real]
    figures: dict[str, Any] = {"saturated_labels": saturation_share(logits), "warnings": []}
    if not selected.policy.report.history[0]["converged"] and settings.labels == "soft":
        figures["warnings"].append(
            f"the fit did not settle (label logits up to {float(np.abs(logits).max(initial=0)):.0f}): its figures are "
            "not the optimum's; a larger --temperature has the same optimum and smaller logits"
        )
    if settings.labels == "hard":
        figures["warnings"].append(
            "hard labels have no finite optimum: the policy runs towards a deterministic ranking, and a multiplier "
            "acts only through the pairs whose label flips; use soft"
        )
        if len(setting.world.names) == 1:
            gaps = [
                (table[:, first] - table[:, second])[real] for table in (setting.raw.reward, setting.raw.costs[..., 0])
            ]
            grid = np.array([0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0])
            shares = flip_curve(gaps[0], gaps[1], grid)
            figures["flip_curve"] = [
                {"multiplier": float(m), "share": float(share)} for m, share in zip(grid, shares, strict=True)
            ]
    return figures


def _parameters(setting: _Setting, told: Settings, state: DualState, selected: Iterate) -> dict[str, Any]:
    uses_rule = setting.method.weight != "none"
    multipliers = setting.scale.raw_multipliers(selected.multipliers)
    own = setting.method.parameters(multipliers, setting.raw.beta, told.options)
    return {
        "dual": told.rule.name if uses_rule else None,
        "status": state.status,
        "start": setting.named(setting.scale.raw_multipliers(told.start)) if uses_rule else None,
        "loss": told.loss,
        "labels": told.labels,
        "temperature": told.temperature,
        "beta_dpo": setting.scaled.beta / told.temperature,
        "seed": setting.chosen.seed,
        "reward_sd": setting.scale.reward_sd,
        "cost_sds": setting.named(setting.scale.cost_sds),
        **told.options,
        **plain(own),
    }


def divergence(problem: FiniteProblem, log_probs: FloatArray, other: FloatArray) -> float:
    """Return E KL(``log_probs`` || ``other``) over the prompts, in nats, 0 at the least."""
    return max(0.0, float(problem.prompt_weights @ prompt_kl(log_probs, other)))


def policy_table(world: World, solution: Solution) -> dict[str, Any]:
    """Return the policy as the JSON object of ``--policy``: each prompt's responses and their probabilities."""
    figures = solution.figures
    prompts = [
        {
            "prompt": prompt.text,
            "responses": [
                {"response": response.text, "probability": float(np.exp(value)), "reference": response.reference}
                for response, value in zip(prompt.responses, row, strict=False)
            ],
        }
        for prompt, row in zip(world.prompts, solution.log_probs, strict=True)
    ]
    return {"method": figures["method"], "beta": world.beta, "multipliers": figures["multipliers"], "prompts": prompts}
