"""The reliability diagram of a fitted scorer as one SVG file that stands alone, in light and in dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dualign.report.figures import ACCENT, INK, LINE, MUTED, svg

COLOURS = """<style>
svg { background: var(--paper); }
svg { --ink: #1b1d1f; --muted: #5f656b; --line: #d9dad4; --accent: #0b6b66; --paper: #fdfdfb; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #eceae4; --muted: #a0a5a8; --line: #3a3f42; --accent: #5cc9bd; --paper: #141617; }
}
</style>"""
PANELS = {"order": ("order: P(the answers stand this way round)", 0.5), "sign": ("sign: P(unsafe)", 0.0)}
"""Title and least forecast, by name in ``calibration``."""

Bin = Mapping[str, Any]


def reliability_diagram(calibration: Mapping[str, Any]) -> str:
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


def _panel(axes: Any, title: str, start: float, table: Sequence[Bin]) -> None:
    axes.plot([start, 1], [start, 1], color=LINE, lw=1)
    forecast = [part["forecast"] for part in table]
    observed = [part["observed"]["value"] for part in table]
    reach = [
        [part["observed"]["value"] - part["observed"]["low"] for part in table],
        [part["observed"]["high"] - part["observed"]["value"] for part in table],
    ]
    axes.errorbar(forecast, observed, yerr=reach, fmt="o", color=ACCENT, ecolor=ACCENT, elinewidth=1, ms=5)
    for part, x, y in zip(table, forecast, observed, strict=True):
        axes.annotate(
            f"{part['observed']['n']:,}", (x, y), xytext=(6, -11), textcoords="offset points", fontsize=8, color=MUTED
        )
    axes.set_xlim(start, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("forecast")
    axes.set_ylabel("observed, with 95 % intervals")
    axes.set_title(title, fontsize=10, color=INK)
