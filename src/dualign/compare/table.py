"""Outcomes of all cells -> one row a method: means over seeds with their errors, and differences from the first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dualign.compare.reading import Outcome, front_at
from dualign.maths.clustering import paired_difference, standard_error

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
            "objective": _difference(cells, first, "objective"),
            "reward": _by_prompt(cells, first) or _difference(cells, first, "reward"),
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


def _difference(cells: Sequence[Outcome], first: Sequence[Outcome], figure: str) -> dict[str, float | None] | None:
    """Return the mean difference over the seeds that both have, with a 95 % interval; none with fewer than two."""
    known = {cell.seed: getattr(cell, figure) for cell in first}
    pairs = [(getattr(cell, figure), known[cell.seed]) for cell in cells if cell.seed in known]
    if len(pairs) < 2 or cells[0].arm == first[0].arm:
        return None
    own, other = np.array(pairs).T
    found = paired_difference(own, other)
    return {"mean": found.estimate, "low": found.low, "high": found.high, "n": len(pairs)}


def _by_prompt(cells: Sequence[Outcome], first: Sequence[Outcome]) -> dict[str, float | None] | None:
    """Return the mean difference of reward over report prompts, each prompt's seeds averaged first."""
    if cells[0].arm == first[0].arm:
        return None
    known = {cell.seed: cell.by_prompt for cell in first}
    gaps: dict[str, list[float]] = {}
    for cell in cells:
        for prompt, reward in cell.by_prompt.items():
            if prompt in known.get(cell.seed, {}):
                gaps.setdefault(prompt, []).append(reward - known[cell.seed][prompt])
    if len(gaps) < 2:
        return None
    means = np.array([np.mean(values) for values in gaps.values()])
    found = paired_difference(means, np.zeros_like(means))
    return {"mean": found.estimate, "low": found.low, "high": found.high, "n": len(gaps)}


def best(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the method with the largest objective among those whose limits held; none where they held for none."""
    held = [row for row in rows if row["held"] and row["objective"]["mean"] is not None]
    return max(held, key=lambda row: row["objective"]["mean"])["method"] if held else None


def selected(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the means of the best row under the names that a job's selected policy has; none where nothing holds."""
    name = best(rows)
    if name is None:
        return None
    row = next(row for row in rows if row["method"] == name)
    return {
        "method": name,
        "multipliers": {key: found["mean"] for key, found in row["multipliers"].items()},
        "reward": row["reward"]["mean"],
        "costs": {key: found["mean"] for key, found in row["costs"].items()},
        "errors": {key: found["error"] for key, found in row["costs"].items()},
        "kl": row["kl"]["mean"],
    }
