"""The figures of the report as inline SVG that takes its colours from the page, so that dark mode holds.

Colours are drawn as placeholders and replaced by the page's variables; text stays text, and no text is ever
read as a formula.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualign.report.reading import Row, is_figure, multipliers, part
from dualign.report.reading import figure as number

INK, MUTED, LINE, ACCENT, PAPER = "#0a0b0c", "#0a0b0d", "#0a0b0e", "#0a0b0f", "#0a0b10"
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", PAPER: "--paper"}
ROLES = {
    "reference": ("s", INK, PAPER, "reference"),
    "dpo": ("D", INK, INK, "plain DPO"),
    "search": ("o", ACCENT, ACCENT, "C-DPO rounds"),
    "cost-only": ("v", MUTED, MUTED, "cost only"),
    "arm": ("^", MUTED, PAPER, "other arms"),
    "held": ("o", ACCENT, ACCENT, "limits shown to hold"),
    "broke": ("X", MUTED, MUTED, "not shown to hold"),
}
"""Marker, colour, face and name of a point by its role, in the order of the legend."""
_TWO_SIDED = 1.96
_DASHED: dict[str, Any] = {"color": INK, "lw": 0.9, "ls": (0, (4, 3))}
_LABEL_PLACES = (
    (7, 6), (7, -13), (-7, 6), (-7, -13), (0, 16), (0, -24), (9, 18), (9, -26), (-9, 18), (-9, -26), (12, 32),
    (12, -40), (-12, 32), (-12, -40),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """One policy in the plane of a cost and the reward."""

    label: str
    role: str
    cost: float
    cost_error: float
    reward: float
    reward_error: float
    selected: bool = False


def svg(draw: Callable[[Any], None], *, title: str, width: float = 7.2, height: float = 4.0) -> str:
    """Return the SVG element that ``draw`` fills; ``title`` is what a screen reader says, and seeds the ids."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": LINE,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "text.parse_math": False,
        "axes.formatter.use_mathtext": False,
    }
    buffer = io.StringIO()
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # a glyph that the measuring font lacks only shifts a label; the browser draws it with its own fonts
        warnings.simplefilter("ignore")
        canvas = Figure(figsize=(width, height), layout="constrained")
        draw(canvas)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    return text.replace("<svg", '<svg role="img"', 1)


def front(points: Sequence[Point], *, cost: str, limit: float | None) -> str:
    """Return reward over one cost for every policy, 95 % intervals, the limit as a line."""

    def draw(canvas: Any) -> None:
        axes = canvas.add_subplot()
        for role in ROLES:
            _points(axes, [p for p in points if p.role == role])
        for chosen in (p for p in points if p.selected):
            axes.plot(chosen.cost, chosen.reward, "o", ms=15, mfc="none", mec=ACCENT, mew=1.6)
        _limit_line(axes, limit)
        axes.margins(0.14)
        axes.set(xlabel=f"{cost} (lower is better)", ylabel="reward (higher is better)")
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=5)
        _label(canvas, axes, points)

    return svg(draw, title=f"Reward against {cost}", height=4.4)


def _points(axes: Any, points: Sequence[Point]) -> None:
    """Draw the points of one role with their intervals."""
    if points:
        marker, colour, face, name = ROLES[points[0].role]
        axes.errorbar(
            [p.cost for p in points], [p.reward for p in points],
            xerr=[_TWO_SIDED * p.cost_error for p in points], yerr=[_TWO_SIDED * p.reward_error for p in points],
            fmt=marker, color=colour, mfc=face, mec=colour, ms=6, elinewidth=0.8, label=name,
        )  # fmt: skip


def _label(canvas: Any, axes: Any, points: Sequence[Point]) -> None:
    """Write each label where it covers least: no other label, no point, no interval. The selected one goes first."""
    import numpy as np
    from matplotlib.transforms import Bbox

    canvas.draw_without_rendering()
    taken = []
    for point in points:
        reach = _TWO_SIDED * np.array([point.cost_error, point.reward_error])
        middle, *ends = axes.transData.transform([np.add((point.cost, point.reward), s * reach) for s in (0, -1, 1)])
        taken += [
            Bbox([(ends[0][0], middle[1] - 2), (ends[1][0], middle[1] + 2)]),
            Bbox([(middle[0] - 2, ends[0][1]), (middle[0] + 2, ends[1][1])]),
            Bbox([middle - 5, middle + 5]),
        ]
    for point in sorted(points, key=lambda p: not p.selected):
        colour, text = (ACCENT, f"{point.label}, selected") if point.selected else (INK, point.label)
        notes = [
            axes.annotate(text, (point.cost, point.reward), (x, y), textcoords="offset points", fontsize=8.5,
                          ha="left" if x > 0 else "right" if x < 0 else "center", color=colour)
            for x, y in _LABEL_PLACES
        ]  # fmt: skip
        boxes = {note: note.get_window_extent() for note in notes}
        best = min(notes, key=lambda note: sum(_overlap(boxes[note], other) for other in taken))
        for note in notes:
            if note is not best:
                note.remove()
        taken.append(boxes[best])


def _overlap(box: Any, other: Any) -> float:
    """Return the area, in pixels, that two boxes share."""
    width = min(box.x1, other.x1) - max(box.x0, other.x0)
    height = min(box.y1, other.y1) - max(box.y0, other.y0)
    return float(max(0.0, width) * max(0.0, height))


def rounds(iterates: Sequence[Row], limits: Mapping[str, float]) -> str:
    """Return the multiplier (above) and the violation with its 95 % interval (below) of each round."""
    at = list(range(len(iterates)))
    line = {"color": ACCENT, "marker": "o", "ms": 5, "lw": 1.2}

    def draw(canvas: Any) -> None:
        grid = canvas.subplots(2, len(limits), sharex=True, squeeze=False)
        for name, upper, lower in zip(limits, *grid, strict=True):
            upper.plot(at, [_value(i, "multipliers", name) for i in iterates], **line)
            violation = [_value(i, "costs", name) - limits[name] for i in iterates]
            error = [_TWO_SIDED * max(0.0, _value(i, "errors", name, 0.0)) for i in iterates]
            lower.errorbar(at, violation, yerr=error, elinewidth=0.9, **line)
            lower.axhline(0, **_DASHED)
            upper.set(ylabel="multiplier λ")
            lower.set(ylabel=f"{name} − limit", xlabel="round")
            lower.set_xticks(at, [str(i.get("round", n)) for n, i in enumerate(iterates)])
            for axes in (upper, lower):
                axes.margins(y=0.15)

    return svg(draw, title="Multiplier and violation by round", height=4.4)


def histogram(reference: Sequence[float], selected: Sequence[float], *, cost: str, limit: float | None) -> str:
    """Return the distribution of one cost over responses, reference against selected, as shares of each."""

    def draw(canvas: Any) -> None:
        import numpy as np

        axes = canvas.add_subplot()
        both = np.concatenate([np.asarray(reference, float), np.asarray(selected, float)])
        edges = np.histogram_bin_edges(both, bins=min(30, max(8, int(np.sqrt(len(both))))))
        for values, name, colour, alpha in (
            (reference, "reference", MUTED, 0.28),
            (selected, "selected", ACCENT, 0.40),
        ):
            bars = {"bins": edges, "weights": np.full(len(values), 1.0 / max(1, len(values))), "color": colour}
            axes.hist(values, alpha=alpha, histtype="stepfilled", **bars)
            axes.hist(values, histtype="step", lw=1.3, label=name, **bars)
        _limit_line(axes, limit)
        axes.margins(y=0.16)
        axes.set(xlabel=f"{cost} of a response", ylabel="share of responses")
        axes.legend(frameon=False, fontsize=9)

    return svg(draw, title=f"Distribution of {cost}", height=3.2)


def _limit_line(axes: Any, limit: float | None) -> None:
    if limit is not None:
        axes.axvline(limit, **_DASHED)
        axes.annotate(f"limit {number(limit)}", (limit, 1), (4, -2), xycoords=("data", "axes fraction"),
                      textcoords="offset points", va="top", fontsize=8.5, color=MUTED)  # fmt: skip


def _value(iterate: Row, group: str, name: str, default: float = float("nan")) -> float:
    value = part(iterate, group).get(name)
    return float(value) if is_figure(value) else default


def as_point(policy: Row, cost: str, *, role: str, selected: bool = False) -> Point | None:
    """Return ``policy`` in the plane of ``cost`` and reward, or None where one of the two was not measured."""
    value, reward = _value(policy, "costs", cost), policy.get("reward")
    if not is_figure(value) or not is_figure(reward):
        return None
    error, told = policy.get("reward_error"), multipliers(policy.get("multipliers"))
    label = f"λ = {told}" if told and role != "reference" else role
    label = str(policy.get("name") or label) if role == "arm" else label
    return Point(
        label=label if len(label) <= 40 else label[:39] + "…",
        role=role if role in ROLES else "arm",
        cost=value,
        cost_error=max(0.0, _value(policy, "errors", cost, 0.0)),
        reward=float(reward),
        reward_error=max(0.0, float(error)) if is_figure(error) else 0.0,
        selected=selected,
    )


COLOURS = """<style>
svg { background: var(--paper); }
svg { --ink: #1b1d1f; --muted: #5f656b; --line: #d9dad4; --accent: #0b6b66; --paper: #fdfdfb; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #eceae4; --muted: #a0a5a8; --line: #3a3f42; --accent: #5cc9bd; --paper: #141617; }
}
</style>"""
PANELS = {"order": ("order: P(the answers stand this way round)", 0.5), "sign": ("sign: P(unsafe)", 0.0)}
"""Title and least forecast, by name in ``calibration``."""


def reliability_diagram(calibration: Row) -> str:
    """Return an SVG document: how often forecasts came true, by what was forecast.

    Args:
        calibration: ``held_out.calibration`` of the report of a fit: for ``order`` and ``sign`` a table of bins, or
            none where there is nothing to show.
    """
    shown = [(PANELS[name], found["table"]) for name, found in calibration.items() if found is not None]

    def draw(canvas: Any) -> None:
        for axes, ((title, start), table) in zip(canvas.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            _panel(axes, title, start, table)

    drawn = svg(draw, title="Reliability of the scores on held-out prompts", width=3.9 * len(shown), height=3.9)
    end = drawn.index(">") + 1
    return drawn[:end] + COLOURS + drawn[end:] + "\n"


def _panel(axes: Any, title: str, start: float, table: Sequence[Row]) -> None:
    axes.plot([start, 1], [start, 1], color=LINE, lw=1)
    forecast, seen = [row["forecast"] for row in table], [row["observed"] for row in table]
    observed = [row["value"] for row in seen]
    reach = [[row["value"] - row["low"] for row in seen], [row["high"] - row["value"] for row in seen]]
    axes.errorbar(forecast, observed, yerr=reach, fmt="o", color=ACCENT, ecolor=ACCENT, elinewidth=1, ms=5)
    for row, *at in zip(seen, forecast, observed, strict=True):
        axes.annotate(f"{row['n']:,}", at, xytext=(6, -11), textcoords="offset points", fontsize=8, color=MUTED)
    axes.set(xlim=(start, 1), ylim=(0, 1), xlabel="forecast", ylabel="observed, with 95 % intervals")
    axes.set_title(title, fontsize=10, color=INK)
