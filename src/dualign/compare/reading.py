"""What a finished run directory says of its selected policy, in the same figures for every kind of job."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dualign.maths.clustering import standard_error
from dualign.maths.functionals import Mean, Rate, parse
from dualign.records import FloatArray
from dualign.runs.journal import read_events
from dualign.runs.store import read_json, read_table

Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The selected policy of one cell."""

    arm: str
    seed: int
    holds: bool
    """By truth where the world knows it, else whether the certificate was given."""
    reward: float
    costs: Mapping[str, float]
    kl: float
    """Nats; on a language model over the tune prompts of constrained slices."""
    objective: float
    """reward - raw beta * KL, both of the same prompts."""
    errors: Mapping[str, float]
    """Standard errors of ``reward``, ``objective`` (that of its reward) and each cost by its name; 0 where exact."""
    front: Sequence[tuple[float, float, float]]
    """(cost of the first limit, reward, objective) of every policy that the method trained."""
    seconds: float
    """Of training alone, what it samples itself included; what is shared between methods, and measuring, is not."""
    wall_seconds: float
    peak_bytes: int
    policies: int
    seconds_to_limit: float = math.nan
    """Of training, up to the first policy whose limits held on tune prompts by their errors; NaN: none did."""
    multipliers: Mapping[str, float] = field(default_factory=dict)
    """Of the selected policy, raw."""
    refusals: Mapping[str, float] = field(default_factory=dict)
    """Share refused by slice, where the job measures refusals and the slice has no limit."""
    by_prompt: Mapping[str, float] = field(default_factory=dict)
    """Reward by report prompt, for differences that are paired."""
    family: Mapping[str, Any] = field(default_factory=dict)
    """Of the certificate, where there is one: how many cells were fixed together, and which policies hold as the best
    of them."""


def read_outcome(run: Path, record: Figures) -> Outcome:
    """Return the outcome of a finished run.

    Raises:
        MissingError: a file of the run is absent.
        DataError: a file of the run is damaged.
    """
    result = read_json(run / "result.json", run=run)
    exact = run / "exact.json"
    if result.get("enumerated"):
        found = _of_world(result)
    elif exact.exists():
        found = _of_assistant(result, read_json(exact, run=run))
    else:
        found = _of_model(result, run)
    spent = training_seconds(run)
    search = [row for row in result["iterates"] if row.get("role") != "cost-only"]
    return Outcome(
        arm=str(record["arm"]),
        seed=int(record["seed"]),
        seconds=round(sum(seconds for _, seconds in spent), 3),
        seconds_to_limit=seconds_to_limit(spent, search),
        wall_seconds=float(record["wall_seconds"]),
        peak_bytes=int(record["peak_bytes"]),
        multipliers=dict(result["selected"]["multipliers"]),
        policies=len(search),
        family=_family(run),
        **found,
    )


def _family(run: Path) -> dict[str, Any]:
    path = run / "certificate.json"
    return dict(read_json(path, run=run).get("family") or {}) if path.exists() else {}


def training_seconds(run: Path) -> list[tuple[str, float]]:
    """Return (round's folder, seconds) of every phase that trains, in order: fits, games and their own samples.

    A fit counts as its report does: the first of a run also computes the reference's log-probabilities of the training
    groups, which the cells of a comparison share.
    """
    found = []
    for event in read_events(run):
        target, phase = str(event.get("target", "")), event.get("phase")
        trains = phase in ("fit", "game") or (phase == "sample" and "-game" in target)
        if event.get("event") == "finished" and trains and "cost-only" not in target:
            record = run / target / "policy.json"
            report = read_json(record, run=run).get("report") if phase == "fit" and record.is_file() else None
            found.append((target, float((report or event)["seconds"])))
    return found


def seconds_to_limit(spent: Sequence[tuple[str, float]], iterates: Sequence[Figures]) -> float:
    """Return what was spent when the first policy whose limits held was trained; NaN where none is."""
    held = {f"rounds/{row['name']}/fit" for row in iterates if row.get("limits_met")}
    total = 0.0
    for target, seconds in spent:
        total += seconds
        if target in held:
            return round(total, 3)
    return math.nan


def _of_world(result: Figures) -> dict[str, Any]:
    selected, name = result["selected"], next(iter(result["limits"]))
    return {
        "holds": result["verdict"] == "CERTIFIED",
        **{key: selected[key] for key in ("reward", "costs", "kl", "objective")},
        "errors": {},
        "front": [
            (row["costs"][name], row["reward"], row["reward"] - result["beta_raw"] * row["kl"])
            for row in result["iterates"]
        ],
    }


def _of_assistant(result: Figures, exact: Figures) -> dict[str, Any]:
    selected, limits = exact["selected"], result["limits"]
    name = next(iter(limits))
    # the reference first, then the iterates in their order, then arms that were asked for besides
    rows = zip(result["iterates"], exact["arms"][1:], strict=False)
    trained = [arm for row, arm in rows if row["role"] != "cost-only"]
    return {
        "holds": all(selected["costs"][key] <= limit for key, limit in limits.items()),
        **{key: selected[key] for key in ("reward", "costs", "kl", "objective")},
        "errors": {},
        "front": [(arm["costs"][name], arm["reward"], arm["objective"]) for arm in trained],
    }


def _of_model(result: Figures, run: Path) -> dict[str, Any]:
    """Return rewards and costs on report prompts; KL, objective and front are on tune prompts of constrained slices.

    A cost is what its limit bounds: of a tail or a difference from the reference, whose other side is not in the
    table of answers, the figure on tune prompts.
    """
    table = read_table(run / "report" / "answers.parquet", run=run)
    rows = [k for k, role in enumerate(table["policy"]) if role == "selected"]

    def column(name: str) -> FloatArray:
        return np.array([math.nan if table[name][k] is None else table[name][k] for k in rows], dtype=np.float64)

    names = list(result["limits"])
    reward = column("reward")
    selected, beta = result["selected"], float(result["beta_raw"])
    values = {name: _bounded(column(f"cost_{name}"), result["constraints"][name]["functional"]) for name in names}
    return {
        "holds": result["verdict"] == "CERTIFIED",
        "reward": float(reward.mean()),
        "costs": {n: selected["costs"][n] if costs is None else float(costs.mean()) for n, costs in values.items()},
        "kl": float(selected["kl"]),
        "objective": selected["reward"] - beta * selected["kl"],
        "errors": {"reward": standard_error(reward), "objective": selected["reward_error"]}
        | {n: selected["errors"][n] if costs is None else standard_error(costs) for n, costs in values.items()},
        "front": [
            (row["costs"][names[0]], row["reward"], row["reward"] - beta * row["kl"])
            for row in result["iterates"]
            if row.get("role") != "cost-only"
        ],
        "refusals": _refusals(table, rows, column),
        "by_prompt": {table["prompt_id"][k]: table["reward"][k] for k in rows},
    }


def _bounded(costs: FloatArray, functional: str) -> FloatArray | None:
    """Return the single costs whose mean a functional bounds, those outside its slice left out; none: it needs more."""
    known = parse(functional)
    return known.transform(costs[np.isfinite(costs)], None) if isinstance(known, Mean | Rate) else None


def _refusals(table: Figures, rows: Sequence[int], column: Any) -> dict[str, float]:
    """Return the share refused by slice; none where the job has no metric of that name."""
    if "refusal" not in table:
        return {}
    values, slices = column("refusal"), np.array([table["slice"][k] for k in rows])
    return {str(name): float(values[slices == name].mean()) for name in dict.fromkeys(slices.tolist())}


def front_at(front: Sequence[tuple[float, float, float]], cost: float) -> tuple[float, float]:
    """Return reward and objective at ``cost``, linear between the policies of a front; NaN outside their costs.

    The objective prices KL at beta: at equal cost it compares rewards as if KL were equal too. A policy that another
    beats in cost and reward is left out.
    """
    kept = [p for p in front if not any(q[:2] != p[:2] and q[0] <= p[0] and q[1] >= p[1] for q in front)]
    points = sorted(set(kept))
    if not points or not points[0][0] <= cost <= points[-1][0]:
        return math.nan, math.nan
    costs, rewards, objectives = zip(*points, strict=True)
    return float(np.interp(cost, costs, rewards)), float(np.interp(cost, costs, objectives))
