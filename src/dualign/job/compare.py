"""Outcomes of all cells -> one row a method: means over seeds with their errors, and differences from the first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dualign.config import Config
from dualign.errors import DualignError, UsageError
from dualign.hashing import plain
from dualign.job.cells import (
    RECORD,
    Cell,
    Family,
    Outcome,
    cells,
    finished_before,
    fix_family,
    front_at,
    parse_arm,
    read_outcome,
    run_cell,
)
from dualign.job.phases import Tell
from dualign.maths.estimates import paired_difference, standard_error
from dualign.report.compare_page import comma_separated, markdown, page
from dualign.runs.lock import file_lock
from dualign.runs.store import read_json, write_json, write_text

ENOUGH = 0.8
"""Share of the seeds in which the limits have to hold for a method to count as one that holds them."""


def summarise(outcomes: Sequence[Outcome], limits: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return one row an arm, in the order of the outcomes; differences are taken from the first arm.

    An error is the standard error over seeds; of one seed, that over its prompts, and 0 where figures are exact.
    """
    arms = list(dict.fromkeys(outcome.arm for outcome in outcomes))
    by_arm = {arm: [outcome for outcome in outcomes if outcome.arm == arm] for arm in arms}
    rows = [_row(by_arm[arm], by_arm[arms[0]], limits) for arm in arms]
    # a seed that a method did not finish, and another did, counts as one in which its limits did not hold
    seeds = max((row["seeds"] for row in rows), default=0)
    return [{**row, "held": row["limits_held"] >= ENOUGH * seeds} for row in rows]


def _row(cells: Sequence[Outcome], first: Sequence[Outcome], limits: Mapping[str, float]) -> dict[str, Any]:
    name, limit = next(iter(limits.items()))
    slices = dict.fromkeys(s for cell in cells for s in cell.refusals)
    rewards, objectives = zip(*(front_at(cell.front, limit) for cell in cells), strict=True)
    return {
        "method": cells[0].arm,
        "seeds": len(cells),
        "limits_held": sum(cell.holds for cell in cells),
        "reward": _mean([cell.reward for cell in cells], cells[0].errors.get("reward", 0.0)),
        "multipliers": {k: _mean([cell.multipliers.get(k, math.nan) for cell in cells], math.nan) for k in limits},
        "costs": {key: _mean([cell.costs[key] for cell in cells], cells[0].errors.get(key, 0.0)) for key in limits},
        "kl": _mean([cell.kl for cell in cells], math.nan),
        "objective": _mean([cell.objective for cell in cells], cells[0].errors.get("objective", 0.0)),
        f"reward_at_{name}_limit": _mean(rewards, math.nan),
        f"objective_at_{name}_limit": _mean(objectives, math.nan),
        "refusals": {key: _mean([cell.refusals[key] for cell in cells], math.nan) for key in slices},
        "difference": {
            "objective": _by_seed(cells, first, "objective"),
            "reward": _by_prompt(cells, first) or _by_seed(cells, first, "reward"),
        },
        "policies": float(np.mean([cell.policies for cell in cells])),
        "seconds_to_limit": _mean([cell.seconds_to_limit for cell in cells], math.nan),
        "fit_seconds": float(np.mean([cell.seconds for cell in cells])),
        "wall_seconds": float(np.mean([cell.wall_seconds for cell in cells])),
        "peak_bytes": max(cell.peak_bytes for cell in cells),
    }


def _mean(values: Sequence[float], alone: float) -> dict[str, float | None]:
    """Return mean and standard error over seeds; ``alone`` is the error of a single value."""
    found = np.array([value for value in values if math.isfinite(value)])
    if not found.size:
        return {"mean": None, "error": None}
    error = standard_error(found) if found.size > 1 else alone
    return {"mean": float(found.mean()), "error": error if math.isfinite(error) else None}


def _difference(own: Sequence[float], other: Sequence[float]) -> dict[str, float] | None:
    """Return the mean difference with a 95 % interval; none of fewer than two."""
    if len(own) < 2:
        return None
    found = paired_difference(np.array(own), np.array(other))
    return {"mean": found.estimate, "low": found.low, "high": found.high, "n": len(own)}


def _by_seed(cells: Sequence[Outcome], first: Sequence[Outcome], figure: str) -> dict[str, float] | None:
    """Return the mean difference over the seeds that both have; none for the first arm itself."""
    known = {} if cells is first else {cell.seed: getattr(cell, figure) for cell in first}
    both = [cell for cell in cells if cell.seed in known]
    return _difference([getattr(cell, figure) for cell in both], [known[cell.seed] for cell in both])


def _by_prompt(cells: Sequence[Outcome], first: Sequence[Outcome]) -> dict[str, float] | None:
    """Return the mean difference of reward over report prompts, each prompt's seeds averaged first."""
    if cells is first:
        return None
    known = {cell.seed: cell.by_prompt for cell in first}
    gaps: dict[str, list[float]] = {}
    for cell in cells:
        for prompt, reward in cell.by_prompt.items():
            if prompt in known.get(cell.seed, {}):
                gaps.setdefault(prompt, []).append(reward - known[cell.seed][prompt])
    return _difference([float(np.mean(values)) for values in gaps.values()], [0.0] * len(gaps))


def best(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the method with the largest objective among those whose limits held; none where they held for none."""
    held = [row for row in rows if row["held"] and row["objective"]["mean"] is not None]
    return max(held, key=lambda row: row["objective"]["mean"])["method"] if held else None


def selected(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the means of the best row under the names that a job's selected policy has; none where nothing holds."""
    row = next((row for row in rows if row["method"] == best(rows)), None)
    if row is None:
        return None
    return {
        "method": row["method"],
        "multipliers": {key: found["mean"] for key, found in row["multipliers"].items()},
        "reward": row["reward"]["mean"],
        "costs": {key: found["mean"] for key, found in row["costs"].items()},
        "errors": {key: found["error"] for key, found in row["costs"].items()},
        "kl": row["kl"]["mean"],
    }


FAMILY_LOCK = ".families.lock"


def compare_cells(
    family: Family, methods: Sequence[str], seeds: Sequence[int], out: Path | None, tell: Tell
) -> dict[str, Any]:
    """Return the report of all cells; the pages stand in ``out``.

    Raises:
        UsageError: an unknown method, or no cell that finished.
        DataError: a cell's folder was made by another config: then none is trained.
        DualignError: the first method does not fit the config: then none is trained.
    """
    name = family.name
    folder = Path("runs") / f"compare-{name}" if out is None else out
    todo = cells([parse_arm(method) for method in methods], list(seeds), folder)
    family.config(todo[0])
    for cell in todo:
        if (cell.run / RECORD).exists():
            finished_before(cell, family.config(cell))
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / FAMILY_LOCK):  # of two comparisons at one time, the second sees the cells of the first
        configs: dict[Path, Config] = {}
        for cell in todo:
            with suppress(DualignError):  # it is refused when its turn comes
                configs[cell.run] = family.config(cell)
        fix_family(todo, configs, folder)
    records = _train(todo, family, tell)
    done = [(cell, record) for cell, record in zip(todo, records, strict=True) if record["finished"]]
    broken = [(c, r) for c, r in zip(todo, records, strict=True) if not r["finished"]]
    if not done:
        raise UsageError(f"compare: no cell finished; the first said: {records[0]['error']}")
    ranks = {cell.arm.label: rank for rank, cell in enumerate(todo[: len(methods)])}
    done.sort(key=lambda pair: (ranks[pair[0].arm.label], pair[0].seed))
    outcomes = [read_outcome(cell.run, record) for cell, record in done]
    limits = dict(read_json(done[0][0].run / "result.json")["limits"])
    report = _report(name, outcomes, limits) | {
        "failed": [f"{cell.arm.label}, seed {cell.seed}: {record['error']}" for cell, record in broken],
        "exit_code": broken[0][1]["code"] if broken else 0,
    }
    write_json(folder / "compare.json", report)
    write_text(folder / "compare.csv", comma_separated(report))
    write_text(folder / "compare.md", markdown(report))
    write_text(folder / "compare.html", page(report))
    return report


def _train(todo: Sequence[Cell], family: Family, tell: Tell) -> list[dict[str, Any]]:
    """Return the record of every cell; the first that finishes under a seed lends its shared parts to the others."""
    finished: dict[int, Path] = {}
    records = []
    for cell in todo:
        try:
            record = run_cell(cell, family, tell, like=finished.get(cell.seed))
        except DualignError as error:
            tell(f"{cell.run.name}: {error}")
            record = {"code": error.exit_code, "finished": False, "error": str(error)}
        if record["finished"]:
            finished.setdefault(cell.seed, cell.run)
        records.append(record)
    return records


def _report(name: str, outcomes: Sequence[Outcome], limits: dict[str, float]) -> dict[str, Any]:
    rows = summarise(outcomes, limits)
    listed = [{key: value for key, value in asdict(o).items() if key != "by_prompt"} for o in outcomes]
    notes = [
        "Limits held: by truth in a known world, by the certificate on a language model; without one it is open.",
        "fit s is the time of training, with what a method samples for it; what methods share is left out.",
        "Methods without a limit of their own (MODPO, SACPO and others) get their multipliers by the same search.",
    ]
    notes += _certificates_in_words(outcomes)
    chosen = selected(rows)
    found = {
        "run": name,
        "verdict": "CERTIFIED" if chosen else "NO CERTIFIED POLICY",
        "limits": limits,
        "selected": chosen,
        "iterates": listed,
        "seconds": {row["method"]: row["fit_seconds"] for row in rows},
        "report": "compare.html",
        "rows": rows,
        "best": best(rows),
        "notes": notes,
    }
    return dict(plain(found))


def _certificates_in_words(outcomes: Sequence[Outcome]) -> list[str]:
    """Return what the certificates say together: each holds for its cell alone, the best of several needs more."""
    families = [outcome for outcome in outcomes if outcome.family]
    if not families:
        return []
    cells = max(int(outcome.family["cells"]) for outcome in families)
    hold = [f"{o.arm} (seed {o.seed})" for o in families if o.family["certified_as_best"]]
    return [
        f"Each certificate is for its cell alone, at its own delta. Who picks the best of {cells} cells needs "
        f"delta / {cells}: certified there too: {', '.join(hold) or 'none'}."
    ]
