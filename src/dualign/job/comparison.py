"""Policies side by side on report prompts that nothing was chosen on: differences, judges' words, answers to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dualign.job.measurement import Scored, slice_of
from dualign.job.phases import Job, score_rows
from dualign.job.search import Search
from dualign.maths.agreement import spearman
from dualign.maths.estimates import paired_difference, standard_error
from dualign.protocols import Policy
from dualign.records import FloatArray, Prompt
from dualign.runs.store import write_json, write_table

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
    for i, constraint in enumerate(job.constraints):
        values = np.full(len(made.prompts), np.nan)
        rows = slice_of(made.prompts, constraint.where)
        values[rows] = made.costs[rows, :, i].mean(axis=1)
        table[f"cost_{constraint.name}"] = values
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
    columns: dict[str, list[Any]] = {"policy": [], "prompt_id": [], "prompt": [], "slice": [], "response": []}
    figures: dict[str, list[Any]] = {name: [] for name in next(iter(table.values()))}
    for role, answers in made.items():
        columns["policy"] += [role] * len(prompts)
        columns["prompt_id"] += [prompt.id for prompt in prompts]
        columns["prompt"] += [prompt.text for prompt in prompts]
        columns["slice"] += [slice_name(prompt) for prompt in prompts]
        columns["response"] += [row[0].text for row in answers.responses]
        for name in figures:
            figures[name] += [None if np.isnan(value) else float(value) for value in table[role][name]]
    return columns | figures


def judge_figures(job: Job, answers: Mapping[str, list[Any]], policy: str = "selected") -> dict[str, dict[str, Any]]:
    """Return what each judge says of one policy's answers to the report prompts, which it answered once each.

    ``agreement`` is Spearman's correlation of both scores over these answers; NaN where one of them never varies.

    Args:
        job: whose judges.
        answers: columns of ``report/answers.parquet``.
        policy: role of the policy.
    """
    rows = [k for k, role in enumerate(answers["policy"]) if role == policy]
    found = {}
    for name, judge in job.judges.items():
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
