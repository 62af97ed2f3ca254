"""The figures of a fit as a JSON object, and as the text that is shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from dualign.scorers.fitting.measure import Figures, Measure


def measure_json(measure: Measure) -> dict[str, Any]:
    """Return the figures that ``--json`` prints under ``held_out``."""
    categories = dict.fromkeys([*measure.order_by_category, *measure.sign_by_category])
    return {
        "accuracy": asdict(measure.order.accuracy),
        "sign_accuracy": None if measure.sign is None else asdict(measure.sign.accuracy),
        "calibration": {"order": _calibration(measure.order), "sign": _calibration(measure.sign)},
        "by_category": {
            name: {
                "accuracy": _accuracy(measure.order_by_category.get(name)),
                "sign_accuracy": _accuracy(measure.sign_by_category.get(name)),
                "calibration": {
                    "order": _calibration(measure.order_by_category.get(name)),
                    "sign": _calibration(measure.sign_by_category.get(name)),
                },
            }
            for name in categories
        },
        "mean": measure.mean,
        "sd": measure.deviation,
    }


def report_text(report: Mapping[str, Any]) -> str:
    """Return the lines that are shown for a report, as ``entry.fit_scorer`` gives it."""
    return "\n".join(_lines(report))


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    held_out, data = report["held_out"], report["data"]
    yield f"{report['kind']} model by the {report['path']} path, fitted to {data['train_pairs']:,} pairs of " + (
        f"{data['train_prompts']:,} prompts in {report['seconds']:.0f} s"
    )
    if data["left_out"]:
        yield "left out: " + "; ".join(f"{count:,} {reason}" for reason, count in data["left_out"].items())
    yield ""
    yield f"{'held-out prompts':34s}{'accuracy':>9s}  {'95 % interval':15s}{'n':>7s}{'ECE':>8s}{'by noise':>10s}"
    yield _row("order of the answers", held_out["accuracy"], held_out["calibration"]["order"])
    if held_out["sign_accuracy"] is not None:
        yield _row("sign of the cost", held_out["sign_accuracy"], held_out["calibration"]["sign"])
    for name, found in held_out["by_category"].items():
        if found["accuracy"] is not None:
            yield _row(f"  {name}, order", found["accuracy"], found["calibration"]["order"])
        if found["sign_accuracy"] is not None:
            yield _row(f"  {name}, sign", found["sign_accuracy"], found["calibration"]["sign"])
    yield ""
    yield f"zero: {report['zero']}"
    yield f"scorer: {report['out']}/scorer.yaml; reliability: {report['out']}/reliability.svg"


def _row(name: str, share: Mapping[str, Any], calibration: Mapping[str, Any]) -> str:
    interval = f"{share['low']:.3f} to {share['high']:.3f}"
    return (
        f"{name:34.34s}{share['value']:9.3f}  {interval:15s}{share['n']:7,d}"
        f"{calibration['error']:8.3f}{calibration['noise']:10.3f}"
    )


def _accuracy(figures: Figures | None) -> dict[str, Any] | None:
    return None if figures is None else asdict(figures.accuracy)


def _calibration(figures: Figures | None) -> dict[str, Any] | None:
    return None if figures is None else asdict(figures.calibration)
