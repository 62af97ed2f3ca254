"""The table of a comparison as Markdown, CSV and one HTML file with its front."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dualign.report import figures, reading

Row = Mapping[str, Any]


def header(report: Row) -> list[str]:
    """Return the names of the columns."""
    limits, slices = report["limits"], _slices(report)
    costs = [f"{name} (limit {reading.figure(limit)})" for name, limit in limits.items()]
    refused = [f"refused, {name}" for name in slices]
    first, bounded = report["rows"][0]["method"], next(iter(limits))
    return [
        "method", "limits held", "reward", *costs, "KL", "objective", f"reward at {bounded} limit",
        f"objective at {bounded} limit", *refused,
        f"reward − {first}", "policies", "fit s", "s to limit", "peak GB",
    ]  # fmt: skip


def cells(report: Row) -> Iterator[list[str]]:
    """Yield the texts of every row."""
    name, slices = next(iter(report["limits"])), _slices(report)
    for row in report["rows"]:
        yield [
            row["method"],
            f"{row['limits_held']} of {row['seeds']}",
            _measured(row["reward"]),
            *(_measured(row["costs"][key]) for key in report["limits"]),
            _measured(row["kl"]),
            _measured(row["objective"]),
            _measured(row[f"reward_at_{name}_limit"]),
            _measured(row[f"objective_at_{name}_limit"]),
            *(_measured(row["refusals"].get(key)) for key in slices),
            _between(row["difference"]["reward"]),
            f"{row['policies']:.1f}",
            f"{row['fit_seconds']:.0f}",
            _seconds(row["seconds_to_limit"]),
            f"{row['peak_bytes'] / 1e9:.1f}",
        ]


def _slices(report: Row) -> list[str]:
    return list(dict.fromkeys(key for row in report["rows"] for key in row["refusals"]))


def _measured(found: Row | None) -> str:
    if found is None or found["mean"] is None:
        return reading.NOTHING
    if not found["error"]:
        return reading.figure(found["mean"])
    return f"{found['mean']:.3f} ± {found['error']:.3f}".replace("-", "−")


def _seconds(found: Row) -> str:
    return reading.NOTHING if found["mean"] is None else f"{found['mean']:.0f}"


def _between(found: Row | None) -> str:
    if found is None:
        return reading.NOTHING
    return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]".replace("-", "−")


def markdown(report: Row) -> str:
    """Return the table as Markdown, and what was not trained under it."""
    names = header(report)
    lines = ["| " + " | ".join(names) + " |", "| --- |" + " ---: |" * (len(names) - 1)]
    lines += ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in cells(report)]
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
    errors = ("reward", "objective", *limits)
    return {
        "method": cell["arm"],
        "seed": cell["seed"],
        "holds": cell["holds"],
        "reward": cell["reward"],
        **{f"cost_{name}": cell["costs"][name] for name in limits},
        "kl": cell["kl"],
        "objective": cell["objective"],
        **{f"error_{name}": cell["errors"].get(name) for name in errors},
        **{f"multiplier_{name}": cell["multipliers"].get(name) for name in limits},
        **{f"refused_{name}": cell["refusals"].get(name) for name in slices},
        "policies": cell["policies"],
        "fit_seconds": cell["seconds"],
        "seconds_to_limit": cell["seconds_to_limit"],
        "wall_seconds": cell["wall_seconds"],
        "peak_bytes": cell["peak_bytes"],
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
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dualign.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawings = [Markup(drawing) for drawing in _drawings(report)]
    return environment.get_template("compare.html.j2").render(
        title=report["run"], sentence=sentence(report), header=header(report), rows=list(cells(report)),
        held=[row["held"] for row in report["rows"]], drawings=drawings,
        failed=report["failed"], notes=report["notes"],
    )  # fmt: skip


def _drawings(report: Row) -> Iterator[str]:
    """Yield the plane of each cost and the reward, a point a method."""
    called = _short_names([row["method"] for row in report["rows"]])
    for name, limit in report["limits"].items():
        points = [_point(row, name, called) for row in report["rows"] if row["reward"]["mean"] is not None]
        yield figures.front(points, cost=name, limit=limit)


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
