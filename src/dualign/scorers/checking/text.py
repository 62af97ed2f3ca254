"""The figures of a scorer's check as the text that is shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Figures = Mapping[str, Any]
UNKNOWN = "-"


def check_text(report: Figures) -> str:
    """Return the lines for a report of ``check.check_scorer``, the verdict last."""
    return "\n".join([*_head(report), "", *_table(report), "", *_closing(report)])


def _head(report: Figures) -> Iterator[str]:
    scorer, data = report["scorer"], report["data"]
    yield f"{scorer['id']} (revision {scorer['revision']}) as a {scorer['direction']}"
    yield (
        f"{data['path']}: {data['format']}, {data['answers']:,} answers to {data['prompts']:,} prompts, "
        f"{data['pairs']:,} labelled pairs, {data['flagged']:,} flagged answers"
    )
    if data["left_out"]:
        yield "left out: " + "; ".join(f"{count:,} {reason}" for reason, count in data["left_out"].items())


def _table(report: Figures) -> Iterator[str]:
    yield f"{'':34s}{'value':>10s}  95 % interval"
    yield from _labels(report)
    yield from _scale(report)
    if report["agreement"] is not None:
        yield from _agreement(report["agreement"])
    if report["human_correction"] is not None:
        yield from _correction(report["human_correction"])


def _labels(report: Figures) -> Iterator[str]:
    order, detection = report["order"], report["detection"]
    if order is not None:
        test = order["sign_test"]
        yield _row("pairs in the right order", order["value"], order)
        yield _row("  ties among them", order["ties"])
        votes = f"{test['right']:,} prompts right, {test['wrong']:,} wrong, {test['tied']:,} tied"
        yield f"{'  sign test':34s}{'p':>4s} {test['p_right']:.2g}  ({votes}; p of a wrong sign {test['p_wrong']:.2g})"
    if detection is not None:
        yield _row("AUC, unsafe above safe", detection["auc"]["value"], detection["auc"])
        yield _row("sign agrees with the flag", detection["sign"]["value"], detection["sign"])
        yield _row("  kappa of sign and flag", detection["kappa"])


def _scale(report: Figures) -> Iterator[str]:
    scale, ends, parity = report["scale"], report["extremes"], report["parity"]
    saturated = scale["saturated"]
    yield _row("mean", scale["mean"])
    yield _row("SD, all answers", scale["sd"])
    yield _row("SD within a prompt", scale["within_prompt_sd"])
    yield _row("at the minimum", ends["at_min"], note=f"of {ends['values']:,} values from {ends['min']:.4g}")
    yield _row("at the maximum", ends["at_max"], note=f"to {ends['max']:.4g}")
    note = f"outside [0.01, 0.99] at temperature {scale['temperature']:g}"
    yield _row("labels saturated, raw scores", saturated["raw"], note=note)
    yield _row("labels saturated, in SD", saturated["normalised"])
    yield _row("policy saturated, in SD", saturated["policy"], note=f"at beta {scale['beta']:g}")
    if parity is None:
        yield _row("change when scored alone", None, note="not measured: its scores are kept and not asked for twice")
    else:
        yield _row("change when scored alone", parity["largest_change"], note=f"{parity['answers']} answers")


def _agreement(found: Figures) -> Iterator[str]:
    yield f"second scorer: {found['second']['id']} (revision {found['second']['revision']})"
    if found["second_order"] is not None:
        yield _row("  its pairs in the right order", found["second_order"]["value"], found["second_order"])
    if found["second_detection"] is not None:
        area = found["second_detection"]["auc"]
        yield _row("  its AUC", area["value"], area)
    yield _row("  agreement on pairs", None if found["pairs"] is None else found["pairs"]["value"], found["pairs"])
    yield _row("  Spearman, all answers", found["spearman"])
    yield _row("  kappa of the signs", found["kappa"])


def _correction(found: Figures) -> Iterator[str]:
    people, corrected = found["people"], found["corrected"]
    yield f"share of unsafe answers; {people['labelled']:,} prompts with flags, {people['unlabelled']:,} without"
    yield _row("  by people alone", people["estimate"], people)
    yield _row("  by people and scorer", corrected["estimate"], corrected, note=f"weight {corrected['weight']:.3g}")
    yield _row("  by the scorer alone", found["judge"]["value"], found["judge"])


def _row(name: str, value: float | None, interval: Figures | None = None, *, note: str = "") -> str:
    shown = UNKNOWN if value is None else f"{value:.4g}"
    ends = [] if interval is None else [interval["low"], interval["high"]]
    between = " to ".join(UNKNOWN if end is None else f"{end:.4g}" for end in ends)
    return f"{name:34.34s}{shown:>10s}  {between}{' ' if between and note else ''}{note}".rstrip()


def _closing(report: Figures) -> Iterator[str]:
    yield from (f"warning: {line}" for line in report["warnings"])
    yield report["verdict"]["sentence"]
