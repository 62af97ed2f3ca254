"""What an independent judge says of the policy that was selected, beside the scorer that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dualign.job.job import Job
from dualign.maths.agreement import spearman
from dualign.maths.estimates import standard_error
from dualign.scorers.table import dependence_warnings

REWARD = "reward"


def judge_column(name: str) -> str:
    """Return the name of the figure that the judge of ``name`` gives."""
    return f"judge_{name}"


def trained_column(name: str) -> str:
    """Return the name of the figure of the scorer that was trained on."""
    return REWARD if name == REWARD else f"cost_{name}"


def where_of(job: Job, name: str) -> Mapping[str, str]:
    """Return the slice that a score is about."""
    return next((constraint.where for constraint in job.constraints if constraint.name == name), {})


def warnings_of(job: Job) -> list[str]:
    """Return a line where a score is reported by nobody but the scorer that was trained on."""
    return dependence_warnings({REWARD: job.reward, **dict(zip(job.names, job.costs, strict=True))}, job.judges)


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
        columns = [[answers[column][k] for k in rows] for column in (judge_column(name), trained_column(name))]
        pairs = [pair for pair in zip(*columns, strict=True) if None not in pair]
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
