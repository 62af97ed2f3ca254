"""The main job, stage after stage: what ``dualign train`` does with a job that was put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dualign.certificate.certify import VERDICT_CODES
from dualign.job.comparison import compare, slice_name
from dualign.job.job import Job
from dualign.job.judging import judge_figures, warnings_of
from dualign.job.measurement import Scored, matches
from dualign.job.phases import score_rows
from dualign.job.search import Search, extra_round, first_multipliers, prepare, rounds
from dualign.job.verdict import ladder, limits_met, open_calibration, preferred
from dualign.maths.one_shot import OneShot
from dualign.methods.table import METHODS
from dualign.protocols import Policy, words_read
from dualign.records import Certificate, Evaluation, FloatArray, Iterate
from dualign.runs.store import read_table, write_json, write_table

FINISHED = 0.5
"""Share of answers that end by themselves below which a user is warned."""


def run_job(job: Job) -> tuple[dict[str, Any], int]:
    """Return the ``train`` object and the exit code; every file of the run directory is written."""
    search = prepare(job)
    for line in unfinished_warnings(job, {"reference": search.measure(job.reference)}):
        job.tell(f"warning: {line}")
    _write_facts(search)
    plan = search.plan()
    _write_plan(search, plan)
    iterates = list(_told(search, rounds(search, first_multipliers(search))))
    measured = [_raw(search, iterate) for iterate in iterates]
    rungs = ladder(measured, search.limits, job.config.certificate.rungs)
    certificate = open_calibration(search, rungs)
    write_json(job.run / "certificate.json", certificate.figures, run=job.run)
    extra = _cost_only(search)
    selected = next((r for r in rungs if r.policy.name == certificate.selected), preferred(measured, search.limits))
    roles = {"reference": job.reference}
    if _role(search, measured[0]) == "dpo":
        roles["dpo"] = measured[0].policy
    if extra is not None:
        roles["cost-only"] = extra.policy
    roles["selected"] = selected.policy
    compare(job, roles)
    result = _result(search, [*measured, *([extra] if extra else [])], selected, certificate)
    measures = {"reference": search.measure(job.reference), selected.policy.name: selected.evaluation}
    found = [*certificate.figures["warnings"], *job.facts.get("warnings", []), *unfinished_warnings(job, measures)]
    result |= {"judges": _judged(job), "warnings": [*found, *warnings_of(job)]}
    for line in result["warnings"]:
        job.tell(f"warning: {line}")
    write_json(job.run / "result.json", result, run=job.run)
    return result, VERDICT_CODES[certificate.verdict]


def unfinished_warnings(job: Job, measures: Mapping[str, Evaluation]) -> list[str]:
    """Return a line where fewer than half of a policy's answers ended by themselves, by name of the policy."""
    limit = job.config.sampling.max_new_tokens
    return [
        f"{evaluation.extra['finished']:.0%} of the answers of {name} ended by themselves, the others were cut at "
        f"sampling.max_new_tokens ({limit}) and scored as cut; raise it, or see where the model ends its turns"
        for name, evaluation in measures.items()
        if evaluation.extra.get("finished", 1.0) < FINISHED
    ]


def _told(search: Search, iterates: Any) -> Any:
    """Yield the iterates, each with a line of progress."""
    job = search.job
    for iterate in iterates:
        figures = _raw(search, iterate).evaluation
        costs = ", ".join(
            f"{name} {cost:.3f} ± {error:.3f}"
            for name, cost, error in zip(job.names, figures.costs, figures.cost_errors, strict=True)
        )
        job.tell(f"round {iterate.round}: {costs}, reward {figures.reward:.3f}, KL {figures.kl:.2f} nats")
        yield iterate


def _raw(search: Search, iterate: Iterate) -> Iterate:
    """Return the iterate with raw multipliers and raw figures (looked up: it was measured already)."""
    return Iterate(iterate.round, search.raw(iterate.multipliers), search.measure(iterate.policy), iterate.policy)


def _judged(job: Job) -> dict[str, Any]:
    """Return what the judges say of the selected policy's answers to the report prompts."""
    return judge_figures(job, read_table(job.run / "report" / "answers.parquet", run=job.run)) if job.judges else {}


def _cost_only(search: Search) -> Iterate | None:
    """Return the policy at the config's large multiplier, for comparison; none if the config asks for none."""
    largest = search.job.config.method.cost_only
    if largest is None:
        return None
    found = extra_round(search, np.full(len(search.job.constraints), largest), "cost-only")
    return _raw(search, found)


def _write_facts(search: Search) -> None:
    """Write what a reader must know before any training: splits, shares of groups that can teach, scorer quality."""
    job, train = search.job, search.train
    spread: dict[str, dict[str, list[bool]]] = {}
    for k, prompt in enumerate(train.prompts):
        for i, constraint in enumerate(job.constraints):
            if matches(prompt, constraint.where):
                costs = train.costs[k, :, i]
                differs = float(costs.max() - costs.min()) > float(search.scale.cost_sds[i])
                spread.setdefault(constraint.name, {}).setdefault(slice_name(prompt), []).append(differs)
    mixed = {name: {key: float(np.mean(v)) for key, v in slices.items()} for name, slices in spread.items()}
    facts = {
        "splits": {name: len(prompts) for name, prompts in job.splits.items()},
        "slices": _slice_counts(job),
        "mixed_groups": {f"{name} · {key}": share for name, row in mixed.items() for key, share in row.items()},
        "scorers": job.facts.get("scorers", []),
        "notes": [*job.facts.get("notes", []), *unread(job, train)],
        "data_check": job.facts.get("data_check", []),
    }
    write_json(job.run / "data" / "summary.json", facts, run=job.run)
    for line in unread(job, train):
        job.tell(line)
    for name, share in facts["mixed_groups"].items():
        job.tell(f"groups whose answers differ in cost by more than one SD ({name}): {share:.0%}")
    columns: dict[str, list[Any]] = {
        "prompt_id": [p.id for p in train.prompts for _ in range(train.reward.shape[1])],
        "slice": [slice_name(p) for p in train.prompts for _ in range(train.reward.shape[1])],
        "reward": train.reward.ravel().tolist(),
    }
    for i, name in enumerate(job.names):
        columns[f"cost_{name}"] = train.costs[:, :, i].ravel().tolist()
        if job.constraints[i].where:  # costs outside of it were not scored; they stand as 0
            inside = [matches(p, job.constraints[i].where) for p in train.prompts]
            columns[f"inside_{name}"] = [row for row in inside for _ in range(train.reward.shape[1])]
    write_table(job.run / "scores" / "reference.parquet", columns, run=job.run)


def unread(job: Job, made: Scored) -> list[str]:
    """Return a sentence for each score that does not read the whole of some answers that are trained on."""
    said = []
    texts = [response.text for row in made.responses for response in row]
    for name, scorer in {"reward": job.reward, **dict(zip(job.names, job.costs, strict=True))}.items():
        limit = words_read(scorer)
        longer = 0 if limit is None else sum(len(text.split()) > limit for text in texts)
        if longer:
            said.append(
                f"{name} ({scorer.id}) reads the first {limit} words of an answer: {longer} of {len(texts)} answers "
                "that are trained on have more"
            )
    return said


def _slice_counts(job: Job) -> dict[str, dict[str, int]]:
    """Return prompts by split and slice."""
    counts: dict[str, dict[str, int]] = {}
    for split, prompts in job.splits.items():
        for prompt in prompts:
            row = counts.setdefault(split, {})
            row[slice_name(prompt)] = row.get(slice_name(prompt), 0) + 1
    return counts


def _write_plan(search: Search, plan: OneShot) -> None:
    """Write and tell the one-shot plan; its multiplier is a start, never a certificate."""
    job = search.job
    value = {
        "feasible": plan.feasible,
        "multipliers": job.named(search.raw(plan.multipliers)),
        "multipliers_normalised": job.named(plan.multipliers),
        "flip_multiplier": job.named(flip_multipliers(search)),
        "warnings": list(plan.warnings),
    }
    write_json(job.run / "plan.json", value, run=job.run)
    job.tell(f"plan: multipliers {value['multipliers']} (typical flip at {value['flip_multiplier']})")


def flip_multipliers(search: Search) -> FloatArray:
    """Return the raw multiplier at which r - lambda c changes sign on a typical pair, shape ``[constraint]``.

    The median of reward difference over cost difference, over pairs of a group in which both point the same way.
    """
    found = []
    for i, _ in enumerate(search.job.constraints):
        ratios = []
        for group in search.train.groups():
            first, second = np.triu_indices(len(group.responses), 1)
            reward = group.reward[first] - group.reward[second]
            cost = group.costs[first, i] - group.costs[second, i]
            opposed = reward * cost > 0
            ratios += list(reward[opposed] / cost[opposed])
        found.append(float(np.median(ratios)) if ratios else np.nan)
    return np.array(found)


def _result(search: Search, measured: Sequence[Iterate], selected: Iterate, certificate: Certificate) -> dict[str, Any]:
    """Return the ``train`` object; tables that are compared hold no seconds, those stand apart."""
    job = search.job
    reference = search.measure(job.reference)
    return {
        "run": job.config.run.name,
        "verdict": certificate.verdict,
        "limits": {constraint.name: constraint.limit for constraint in job.constraints},
        "constraints": {
            constraint.name: {
                "limit": constraint.limit, "functional": constraint.functional, "where": dict(constraint.where),
                "scorer": job.costs[i].id, "cap": constraint.cap,
            }
            for i, constraint in enumerate(job.constraints)
        },
        "selected": _row(search, selected),
        "reference": {"name": "reference", **_figures(job, reference)},
        "iterates": [_row(search, iterate) for iterate in measured],
        "flip_multiplier": job.named(flip_multipliers(search)),
        "seconds": job.journal.seconds(),
        "beta": job.config.training.beta,
        "beta_raw": search.beta,
        "notes": list(job.facts.get("notes", [])),
        "report": "report.html",
    }  # fmt: skip


def _role(search: Search, iterate: Iterate) -> str:
    """Return what a policy is to a reader: plain DPO, the arm at a large multiplier, or a step of the search."""
    method = search.job.config.method
    if METHODS[method.name].begins_with_dpo and method.loss == "dpo" and not iterate.multipliers.any():
        return "dpo"
    return "cost-only" if isinstance(iterate.policy, Policy) and iterate.policy.name == "cost-only" else "search"


def _figures(job: Job, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "reward": evaluation.reward,
        "reward_error": evaluation.reward_error,
        "costs": job.named(evaluation.costs),
        "errors": job.named(evaluation.cost_errors),
        "kl": evaluation.kl,
        **evaluation.extra,
    }


def _row(search: Search, iterate: Iterate) -> dict[str, Any]:
    job, policy = search.job, iterate.policy
    assert isinstance(policy, Policy)
    report = policy.report
    return {
        "round": iterate.round,
        "name": policy.name,
        "role": _role(search, iterate),
        "multipliers": job.named(iterate.multipliers),
        "multipliers_normalised": job.named(iterate.multipliers * search.scale.cost_sds / search.scale.reward_sd),
        **_figures(job, iterate.evaluation),
        "beta": search.beta,
        "slope_of_fit": None if report is None else report.slope,
        "steps": None if report is None else report.steps,
        "limits_met": limits_met(iterate.evaluation, search.limits),
    }


__all__ = ["run_job", "score_rows"]
