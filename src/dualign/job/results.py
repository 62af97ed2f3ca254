"""The main job, step after step, and what it leaves: facts, plan, ladder, certificate, comparison, result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dualign.certificate.certify import VERDICT_CODES
from dualign.job.measurement import Scored, inside, matches, slice_of
from dualign.job.phases import Job, score_rows
from dualign.job.search import Measured, Search, extra_round, first_multipliers, prepare, rounds
from dualign.job.verdict import ladder, limits_met, open_calibration, preferred
from dualign.maths.agreement import spearman
from dualign.maths.estimates import paired_difference, standard_error
from dualign.methods.table import METHODS
from dualign.protocols import Policy, Scorer, words_read
from dualign.records import Certificate, Evaluation, FloatArray, Prompt
from dualign.runs.store import read_table, write_json, write_table
from dualign.scorers.table import dependence_warnings

FINISHED = 0.5
"""Share of answers that end by themselves below which a user is warned."""


def run_job(job: Job) -> tuple[dict[str, Any], int]:
    """Return the ``train`` object and the exit code; every file of the run directory is written."""
    return run_search(prepare(job))


def run_search(search: Search) -> tuple[dict[str, Any], int]:
    """Return what ``run_job`` does, of a search that was prepared."""
    job = search.job
    for line in unfinished_warnings(job, {"reference": search.reference}):
        job.tell(f"warning: {line}")
    _write_facts(search)
    _write_plan(search)
    measured = []
    for one in rounds(search, first_multipliers(search)):
        _tell_round(job, one)
        measured.append(one)
    rungs = ladder([one.raw for one in measured], search.limits, job.config.certificate.rungs)
    certificate = open_calibration(search, rungs)
    write_json(job.run / "certificate.json", certificate.figures, run=job.run)
    best = preferred([one.raw for one in measured], search.limits)
    chosen = certificate.selected or best.policy.name
    selected = next(one for one in measured if one.policy.name == chosen)
    largest = job.config.method.cost_only
    extra = [] if largest is None else [extra_round(search, np.full(len(job.constraints), largest), "cost-only")]
    shown = [one for one in (measured[0], *extra) if _role(job, one) != "search"]
    roles = {_role(job, one): one.policy for one in shown}
    compare(search, {"reference": job.reference, **roles, "selected": selected.policy})
    result = _result(search, [*measured, *extra], selected, certificate)
    judged = read_table(job.run / "report" / "answers.parquet", run=job.run) if job.judges else {}
    result["judges"] = judge_figures(job, judged)
    result["warnings"] = [
        *certificate.figures["warnings"],
        *job.facts.get("warnings", []),
        *unfinished_warnings(job, {"reference": search.reference, chosen: selected.raw.evaluation}),
        *dependence_warnings(job.scorers, job.judges),
    ]
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


def _tell_round(job: Job, one: Measured) -> None:
    """Tell how a policy of the search came out."""
    figures = one.raw.evaluation
    costs = ", ".join(
        f"{name} {cost:.3f} ± {error:.3f}"
        for name, cost, error in zip(job.names, figures.costs, figures.cost_errors, strict=True)
    )
    job.tell(f"round {one.raw.round}: {costs}, reward {figures.reward:.3f}, KL {figures.kl:.2f} nats")


def _write_facts(search: Search) -> None:
    """Write what a reader must know before any training: splits, shares of groups that can teach, scorer quality."""
    job, train = search.job, search.train
    said, mixed = unread(job.scorers, train), _mixed_groups(search)
    counts = {name: dict(Counter(map(slice_name, prompts))) for name, prompts in job.splits.items()}
    facts = {
        "splits": {name: len(prompts) for name, prompts in job.splits.items()},
        "slices": counts,
        "mixed_groups": mixed,
        "scorers": job.facts.get("scorers", []),
        "notes": [*job.facts.get("notes", []), *said],
        "data_check": job.facts.get("data_check", []),
    }
    write_json(job.run / "data" / "summary.json", facts, run=job.run)
    for line in said:
        job.tell(line)
    for name, share in mixed.items():
        job.tell(f"groups whose answers differ in cost by more than one SD ({name}): {share:.0%}")
    write_table(job.run / "scores" / "reference.parquet", _reference_scores(job, train), run=job.run)


def _mixed_groups(search: Search) -> dict[str, float]:
    """Return the share of groups whose answers differ in a cost by more than one SD, by constraint and slice."""
    spread: dict[str, list[bool]] = {}
    for i, constraint in enumerate(search.job.constraints):
        for prompt, costs in zip(search.train.prompts, search.train.costs[:, :, i], strict=True):
            if matches(prompt, constraint.where):
                differs = float(costs.max() - costs.min()) > float(search.scale.cost_sds[i])
                spread.setdefault(f"{constraint.name} · {slice_name(prompt)}", []).append(differs)
    return {name: float(np.mean(found)) for name, found in spread.items()}


def _reference_scores(job: Job, train: Scored) -> dict[str, list[Any]]:
    """Return the table of training answers by their scores alone."""
    n = train.reward.shape[1]
    columns: dict[str, list[Any]] = {
        "prompt_id": [p.id for p in train.prompts for _ in range(n)],
        "slice": [slice_name(p) for p in train.prompts for _ in range(n)],
        "reward": train.reward.ravel().tolist(),
    }
    limited = inside(train.prompts, job.constraints)
    for i, constraint in enumerate(job.constraints):
        columns[f"cost_{constraint.name}"] = train.costs[:, :, i].ravel().tolist()
        if constraint.where:  # costs outside of it were not scored; they stand as 0
            columns[f"inside_{constraint.name}"] = limited[:, i].repeat(n).tolist()
    return columns


def unread(scorers: Mapping[str, Scorer], made: Scored) -> list[str]:
    """Return a sentence for each score that does not read the whole of some answers that are trained on."""
    said = []
    texts = [response.text for row in made.responses for response in row]
    for name, scorer in scorers.items():
        limit = words_read(scorer)
        longer = 0 if limit is None else sum(len(text.split()) > limit for text in texts)
        if longer:
            said.append(
                f"{name} ({scorer.id}) reads the first {limit} words of an answer: {longer} of {len(texts)} answers "
                "that are trained on have more"
            )
    return said


def _write_plan(search: Search) -> None:
    """Write and tell the one-shot plan; its multiplier is a start, never a certificate."""
    job, plan = search.job, search.plan()
    flips = job.named(flip_multipliers(search))
    value = {
        "feasible": plan.feasible,
        "multipliers": job.named(search.scale.raw_multipliers(plan.multipliers)),
        "multipliers_normalised": job.named(plan.multipliers),
        "flip_multiplier": flips,
        "warnings": list(plan.warnings),
    }
    write_json(job.run / "plan.json", value, run=job.run)
    job.tell(f"plan: multipliers {value['multipliers']} (typical flip at {flips})")


def flip_multipliers(search: Search) -> FloatArray:
    """Return the raw multiplier at which r - lambda c changes sign on a typical pair, shape ``[constraint]``.

    The median of reward difference over cost difference, over pairs of a group in which both point the same way.
    """
    first, second = np.triu_indices(search.train.reward.shape[1], 1)
    reward = search.train.reward[:, first] - search.train.reward[:, second]
    found = []
    for i, _ in enumerate(search.job.constraints):
        cost = search.train.costs[:, first, i] - search.train.costs[:, second, i]
        opposed = reward * cost > 0
        found.append(float(np.median(reward[opposed] / cost[opposed])) if opposed.any() else np.nan)
    return np.array(found)


def _result(search: Search, measured: list[Measured], selected: Measured, certificate: Certificate) -> dict[str, Any]:
    """Return the ``train`` object; tables that are compared hold no seconds, those stand apart."""
    job = search.job
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
        "reference": {"name": "reference", **_figures(job, search.reference)},
        "iterates": [_row(search, one) for one in measured],
        "flip_multiplier": job.named(flip_multipliers(search)),
        "seconds": job.journal.seconds(),
        "beta": job.config.training.beta,
        "beta_raw": search.beta,
        "notes": list(job.facts.get("notes", [])),
        "report": "report.html",
    }  # fmt: skip


def _role(job: Job, one: Measured) -> str:
    """Return what a policy is to a reader: plain DPO, the arm at a large multiplier, or a step of the search."""
    method = job.config.method
    if METHODS[method.name].begins_with_dpo and method.loss == "dpo" and not one.raw.multipliers.any():
        return "dpo"
    return "cost-only" if one.policy.name == "cost-only" else "search"


def _figures(job: Job, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "reward": evaluation.reward,
        "reward_error": evaluation.reward_error,
        "costs": job.named(evaluation.costs),
        "errors": job.named(evaluation.cost_errors),
        "kl": evaluation.kl,
        **evaluation.extra,
    }


def _row(search: Search, one: Measured) -> dict[str, Any]:
    job, report = search.job, one.policy.report
    return {
        "round": one.raw.round,
        "name": one.policy.name,
        "role": _role(job, one),
        "multipliers": job.named(one.raw.multipliers),
        "multipliers_normalised": job.named(one.normalised.multipliers),
        **_figures(job, one.raw.evaluation),
        "beta": search.beta,
        "slope_of_fit": None if report is None else report.slope,
        "steps": None if report is None else report.steps,
        "limits_met": limits_met(one.raw.evaluation, search.limits),
    }


SLICE_COLUMNS = ("slice", "label")
"""Prompts are reported by the first of these columns that they have."""


def slice_name(prompt: Prompt) -> str:
    """Return the name of the slice that a prompt is reported under."""
    return next((prompt.columns[key] for key in SLICE_COLUMNS if key in prompt.columns), "all")


def compare(search: Search, policies: Mapping[str, Policy]) -> list[dict[str, Any]]:
    """Return the paired differences of ``policies`` (role -> policy) on the report prompts; both files are written.

    Every policy answers each report prompt once; the first role is what the others are compared with, and
    ``selected`` is compared with each.
    """
    job, prompts = search.job, search.job.splits["report"]
    made = {role: search.answers(policy, prompts, 1, "report") for role, policy in policies.items()}
    table = {role: metrics(job, answers) for role, answers in made.items()}
    rows = comparisons(prompts, table)
    write_json(job.run / "report" / "comparisons.json", rows, run=job.run)
    write_table(job.run / "report" / "answers.parquet", _answers(prompts, made, table), run=job.run)
    return rows


def metrics(job: Job, made: Scored) -> dict[str, FloatArray]:
    """Return each metric prompt by prompt; costs are NaN outside their slice."""
    table = {"reward": made.reward.mean(axis=1)}
    limited = inside(made.prompts, job.constraints)
    for i, name in enumerate(job.names):
        table[f"cost_{name}"] = np.where(limited[:, i], made.costs[:, :, i].mean(axis=1), np.nan)
    where = {constraint.name: constraint.where for constraint in job.constraints}
    for name, judge in job.judges.items():
        values = np.full(len(made.prompts), np.nan)
        rows = slice_of(made.prompts, where.get(name, {}))
        answers = [made.responses[k] for k in rows]
        values[rows] = score_rows(judge, [made.prompts[k] for k in rows], answers).mean(axis=1)
        table[f"judge_{name}"] = values
    for name, scorer in job.metrics.items():
        table[name] = score_rows(scorer, made.prompts, made.responses).mean(axis=1)
    table["tokens"] = np.array([np.mean([len(r.tokens) for r in row]) for row in made.responses])
    return table


def comparisons(prompts: Sequence[Prompt], table: Mapping[str, Mapping[str, FloatArray]]) -> list[dict[str, Any]]:
    """Return a row a slice, metric and pair of policies: levels, difference and its 95 % interval."""
    names = [slice_name(prompt) for prompt in prompts]
    slices = {name: np.array([k for k, other in enumerate(names) if other == name]) for name in dict.fromkeys(names)}
    pairs = [(role, "reference") for role in table if role != "reference"]
    pairs += [("selected", role) for role in table if role not in ("selected", "reference") and "selected" in table]
    rows = []
    for where, index in slices.items():
        for policy, against in pairs:
            for metric in table[policy]:
                a, b = table[policy][metric][index], table[against][metric][index]
                if np.isnan(a).any() or np.ptp(np.concatenate([a, b])) == 0:
                    continue  # outside the metric's slice, or one and the same number everywhere
                found = paired_difference(a, b)
                rows.append(
                    {
                        "slice": where, "metric": metric, "policy": policy, "against": against,
                        "level": float(a.mean()), "level_against": float(b.mean()),
                        "difference": found.estimate, "low": found.low, "high": found.high,
                        "n": len(index), "unit": "prompt",
                    }
                )  # fmt: skip
    return rows


def _answers(
    prompts: Sequence[Prompt],
    made: Mapping[str, Scored],
    table: Mapping[str, Mapping[str, FloatArray]],
) -> dict[str, list[Any]]:
    """Return the answers to read: one row a policy and prompt."""
    rows = [
        {
            "policy": role, "prompt_id": prompt.id, "prompt": prompt.text, "slice": slice_name(prompt),
            "response": answers.responses[k][0].text,
            **{name: None if np.isnan(values[k]) else float(values[k]) for name, values in table[role].items()},
        }
        for role, answers in made.items() for k, prompt in enumerate(prompts)
    ]  # fmt: skip
    return {name: [row[name] for row in rows] for name in rows[0]}


def judge_figures(job: Job, answers: Mapping[str, list[Any]], policy: str = "selected") -> dict[str, dict[str, Any]]:
    """Return what each judge says of one policy's answers to the report prompts, which it answered once each.

    ``agreement`` is Spearman's correlation of both scores over these answers; NaN where one of them never varies.

    Args:
        job: whose judges.
        answers: columns of ``report/answers.parquet``.
        policy: role of the policy.
    """
    found = {}
    for name, judge in job.judges.items():
        rows = [k for k, role in enumerate(answers["policy"]) if role == policy]
        trained_on = name if name == "reward" else f"cost_{name}"
        pairs = [(answers[f"judge_{name}"][k], answers[trained_on][k]) for k in rows]
        pairs = [pair for pair in pairs if None not in pair]
        judged, trained = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
        found[name] = {
            "scorer": judge.id,
            "revision": judge.revision,
            "mean": float(judged.mean()) if judged.size else float("nan"),
            "error": standard_error(judged),
            "trained_mean": float(trained.mean()) if trained.size else float("nan"),
            "agreement": spearman(judged, trained),
            "n_prompts": int(judged.size),
        }
    return found
