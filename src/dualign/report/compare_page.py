"""The table of a comparison as Markdown, CSV and one HTML file with its front."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from dualign.report import figures
from dualign.report.build import page as html_page
from dualign.report.reading import NOTHING, Row, figure


def cells(report: Row, row: Row) -> dict[str, str]:
    """Return the texts of one row by the names of their columns."""
    first, bounded = report["rows"][0]["method"], next(iter(report["limits"]))
    waited = row["seconds_to_limit"]["mean"]
    costs = {
        f"{name} (limit {figure(limit)})": _measured(row["costs"][name]) for name, limit in report["limits"].items()
    }
    return {
        "method": row["method"],
        "limits held": f"{row['limits_held']} of {row['seeds']}",
        "reward": _measured(row["reward"]),
        **costs,
        "KL": _measured(row["kl"]),
        "objective": _measured(row["objective"]),
        **{
            f"{what} at {bounded} limit": _measured(row[f"{what}_at_{bounded}_limit"])
            for what in ("reward", "objective")
        },
        **{f"refused, {name}": _measured(row["refusals"].get(name)) for name in _slices(report)},
        f"reward − {first}": _between(row["difference"]["reward"]),
        "policies": f"{row['policies']:.1f}",
        "fit s": f"{row['fit_seconds']:.0f}",
        "s to limit": NOTHING if waited is None else f"{waited:.0f}",
        "peak GB": f"{row['peak_bytes'] / 1e9:.1f}",
    }


def _slices(report: Row) -> list[str]:
    return list(dict.fromkeys(key for row in report["rows"] for key in row["refusals"]))


def _measured(found: Row | None) -> str:
    if found is None or found["mean"] is None:
        return NOTHING
    if not found["error"]:
        return figure(found["mean"])
    return f"{found['mean']:.3f} ± {found['error']:.3f}".replace("-", "−")


def _between(found: Row | None) -> str:
    if found is None:
        return NOTHING
    return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]".replace("-", "−")


def markdown(report: Row) -> str:
    """Return the table as Markdown, and what was not trained under it."""
    rows = [cells(report, row) for row in report["rows"]]
    lines = ["| " + " | ".join(rows[0]) + " |", "| --- |" + " ---: |" * (len(rows[0]) - 1)]
    lines += ["| " + " | ".join(text.replace("|", "\\|") for text in row.values()) + " |" for row in rows]
    return "\n".join([*lines, "", sentence(report), *(f"Failed: {line}" for line in report["failed"])]) + "\n"


def comma_separated(report: Row) -> str:
    """Return one line a method and seed, as CSV; what a cell does not have is empty."""
    sink = io.StringIO()
    lines = [_flat(cell, list(report["limits"]), _slices(report)) for cell in report["iterates"]]
    writer = csv.DictWriter(sink, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return sink.getvalue()


def _flat(cell: Row, limits: Sequence[str], slices: Sequence[str]) -> dict[str, Any]:
    """Return a cell's figures by the names of their columns."""
    return {
        "method": cell["arm"],
        **{name: cell[name] for name in ("seed", "holds", "reward")},
        **{f"cost_{name}": cell["costs"][name] for name in limits},
        **{name: cell[name] for name in ("kl", "objective")},
        **{f"error_{name}": cell["errors"].get(name) for name in ("reward", "objective", *limits)},
        **{f"multiplier_{name}": cell["multipliers"].get(name) for name in limits},
        **{f"refused_{name}": cell["refusals"].get(name) for name in slices},
        "policies": cell["policies"],
        "fit_seconds": cell["seconds"],
        **{name: cell[name] for name in ("seconds_to_limit", "wall_seconds", "peak_bytes")},
    }


def sentence(report: Row) -> str:
    """Return what the table says in one sentence."""
    if report["best"] is None:
        return "No method was shown to hold its limits in four of five seeds."
    row = next(row for row in report["rows"] if row["method"] == report["best"])
    held = f"{row['limits_held']} of {row['seeds']} seeds"
    return (
        f"Of the methods whose limits held in four of five seeds or more, {report['best']} has the largest mean "
        f"objective, {_measured(row['objective'])} (limits held in {held})."
    )


def page(report: Row) -> str:
    """Return the comparison as one HTML file that needs nothing else; every text is escaped."""
    rows = [cells(report, row) for row in report["rows"]]
    called = _short_names([row["method"] for row in report["rows"]])
    measured = [row for row in report["rows"] if row["reward"]["mean"] is not None]
    drawings = [
        figures.front([_point(row, name, called) for row in measured], cost=name, limit=limit)
        for name, limit in report["limits"].items()
    ]
    return html_page(
        "compare.html.j2",
        title=report["run"],
        sentence=sentence(report),
        header=list(rows[0]),
        rows=[list(row.values()) for row in rows],
        held=[row["held"] for row in report["rows"]],
        drawings=drawings,
        failed=report["failed"],
        notes=report["notes"],
    )


def _short_names(arms: Sequence[str]) -> dict[str, str]:
    """Return arm -> its method's name; where a method has several arms, those keep their settings."""
    methods = [arm.partition(":")[0] for arm in arms]
    return {arm: arm if methods.count(name) > 1 else name for arm, name in zip(arms, methods, strict=True)}


def _point(row: Row, name: str, called: Mapping[str, str]) -> figures.Point:
    cost, reward = row["costs"][name], row["reward"]
    return figures.Point(
        label=called[row["method"]],
        role="held" if row["held"] else "broke",
        cost=cost["mean"],
        cost_error=cost["error"] or 0.0,
        reward=reward["mean"],
        reward_error=reward["error"] or 0.0,
    )
