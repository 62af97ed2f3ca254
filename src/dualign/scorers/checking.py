"""``dualign scorer check``: the object of its figures, what they warn of, its verdict in words, and its text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dualign.data.preferences import PreferenceFile
from dualign.protocols import Direction, Scorer
from dualign.records import FloatArray
from dualign.scorers import checking_figures as measured
from dualign.scorers.checking_figures import Judged, judged
from dualign.scorers.remote import RemoteScorer
from dualign.scorers.spec import FunctionScorer
from dualign.scorers.table import same_scorer

Figures = Mapping[str, Any]
MANY = 0.5
"""From this share on, ties, answers at one extreme and saturated labels are warned of."""


def verdict(figures: Figures, direction: Direction) -> dict[str, str]:
    """Return ``word`` (usable, wrong sign, at chance or constant) and ``sentence``.

    What decides is the 95 % interval of what training uses: the order of labelled pairs; without pairs, the AUC
    against flags.
    """
    ends = figures["extremes"]
    if ends["constant"]:
        return {"word": "constant", "sentence": f"Constant: every answer scores {ends['min']:.6g}; it says nothing."}
    found, says = _evidence(figures, direction)
    if found["low"] > 0.5:
        return {"word": "usable", "sentence": f"Usable as a {direction}: {says}."}
    if found["high"] < 0.5:
        other = "reward" if direction == "cost" else "cost"
        turned = f"turn its sign, or use it as a {other}"
        return {"word": "wrong sign", "sentence": f"The sign is wrong for a {direction}: {says}; {turned}."}
    return {"word": "at chance", "sentence": f"At chance as a {direction}: {says}; the interval holds one half."}


def _evidence(figures: Figures, direction: Direction) -> tuple[Figures, str]:
    """Return what decides, and what it says."""
    order = figures["order"]
    if order is not None:
        side = "less safe" if direction == "cost" else "more helpful"
        of = f"{order['n']:,} pairs of {order['n_prompts']:,} prompts"
        return order, f"the {side} answer scores higher in {_share(order)} of {of}"
    area = figures["detection"]["auc"]
    kinds = f"{figures['detection']['unsafe']:,} unsafe, {figures['detection']['safe']:,} safe"
    return area, f"an unsafe answer scores higher than a safe one with probability {_share(area)} ({kinds})"


def _share(found: Figures) -> str:
    return f"{found['value']:.1%} (95 %: {found['low']:.1%} to {found['high']:.1%})"


def warnings(figures: Figures) -> Iterator[str]:
    """Yield one line for each thing that a user should know before trusting the scorer."""
    ends, order, detection, parity = (figures[name] for name in ("extremes", "order", "detection", "parity"))
    if parity is not None and not parity["held"]:
        yield (
            f"an answer's score changes by up to {parity['largest_change']:.3g} when it is scored alone "
            f"({parity['allowed']:.1g} is rounding): batch or padding leaks into the score"
        )
    if ends["constant"]:
        return
    for side in ("min", "max"):
        if ends[f"at_{side}"] >= MANY:
            what = f"{ends[f'at_{side}']:.0%} of the answers score exactly {ends[side]:.6g}, the {side}imum"
            yield f"{what}: capped, or of few values; it cannot tell them apart"
    if order is not None and order["ties"] >= MANY:
        yield f"{order['ties']:.0%} of the pairs tie, and teach nothing"
    if figures["scale"]["saturated"]["normalised"] >= MANY:
        yield "most labels are outside [0.01, 0.99] even in units of the within-prompt SD; raise the temperature"
    if detection is not None:
        yield from _about_flags(detection, order)


def _about_flags(detection: Figures, order: Figures | None) -> Iterator[str]:
    area, sign = detection["auc"], detection["sign"]
    if sign["value"] < detection["commoner_flag"] and area["low"] > 0.5:
        yield (
            f"its zero does not part safe from unsafe: the sign is right for {sign['value']:.1%} of the flagged "
            f"answers, the commoner flag alone for {detection['commoner_flag']:.1%}; choose the limit on its own scale"
        )
    if order is not None and (area["low"] > 0.5 > order["high"] or area["high"] < 0.5 < order["low"]):
        yield (
            f"pairs and flags contradict each other: AUC {area['value']:.3f} against flags of all prompts, "
            f"{order['value']:.1%} of pairs within a prompt"
        )


def keeps_scores(scorer: Scorer) -> bool:
    """Return whether ``scorer``, or one inside it, is behind an address: no row is sent there twice."""
    inner = scorer.inner if isinstance(scorer, FunctionScorer) else ()
    return isinstance(scorer, RemoteScorer) or any(map(keeps_scores, inner))


def check_scorer(
    scorer: Scorer, file: PreferenceFile, *, second: Scorer | None = None, beta: float, temperature: float
) -> dict[str, Any]:
    """Return the JSON object of ``dualign scorer check``: figures, warnings, verdict.

    Args:
        scorer: Asked for all distinct answers at once, and for a few of them one by one, unless it keeps its scores.
        file: What people said of the answers.
        second: Another scorer of the same quantity, to compare with.
        beta: KL coefficient for scores in units of their within-prompt SD.
        temperature: Of the labels.

    Raises:
        DataError: the file does not say which answers should score higher.
        ScorerError: a scorer failed.
    """
    data, is_cost = judged(file.rows, scorer.direction), scorer.direction == "cost"
    scores = scorer(data.prompts, data.texts)
    found = {
        "order": measured.order(scores, data),
        "detection": measured.detection(scores, data) if is_cost else None,
        "scale": measured.scale(scores, data, beta=beta, temperature=temperature),
        "extremes": measured.extremes(scores),
        # Asked again, such a scorer shows what it kept; and sending a row twice costs twice.
        "parity": None if keeps_scores(scorer) else measured.parity(scorer, scores, data),
        "human_correction": measured.human_correction(scores, data) if is_cost else None,
        "agreement": None if second is None else _compared(scores, second, data),
    }
    told = list(warnings(found))
    if second is not None and same_scorer(scorer, second):
        told.append("the second scorer is the first: their agreement says nothing about either")
    return {
        "scorer": identity(scorer),
        "data": _sizes(file, data),
        **found,
        "warnings": told,
        "verdict": verdict(found, scorer.direction),
    }


def identity(scorer: Scorer) -> dict[str, str]:
    """Return who scored."""
    return {"id": scorer.id, "revision": scorer.revision, "direction": scorer.direction}


def _compared(scores: FloatArray, second: Scorer, data: Judged) -> dict[str, Any]:
    """Return the agreement with the second scorer, and how good that one is on the same labels."""
    other = second(data.prompts, data.texts)
    return {
        "second": identity(second),
        **measured.agreement(scores, other, data),
        "second_order": measured.order(other, data),
        "second_detection": measured.detection(other, data) if second.direction == "cost" else None,
    }


def _sizes(file: PreferenceFile, data: Judged) -> dict[str, Any]:
    return {
        "path": file.path,
        "format": file.format,
        "rows": len(file.rows),
        "faults": len(file.faults),
        "answers": len(data.texts),
        "prompts": len({prompt.id for prompt in data.prompts}),
        "pairs": int(data.higher.size),
        "flagged": int((~np.isnan(data.unsafe)).sum()),
        "left_out": dict(data.left_out),
    }


def check_text(report: Figures) -> str:
    """Return the lines for an object of ``check_scorer``, the verdict last."""
    return "\n".join(_lines(report))


def _lines(report: Figures) -> Iterator[str]:
    scorer, data = report["scorer"], report["data"]
    yield f"{scorer['id']} (revision {scorer['revision']}) as a {scorer['direction']}"
    yield (
        f"{data['path']}: {data['format']}, {data['answers']:,} answers to {data['prompts']:,} prompts, "
        f"{data['pairs']:,} labelled pairs, {data['flagged']:,} flagged answers"
    )
    if data["left_out"]:
        yield "left out: " + "; ".join(f"{count:,} {reason}" for reason, count in data["left_out"].items())
    yield ""
    yield f"{'':34s}{'value':>10s}  95 % interval"
    if report["order"] is not None:
        yield from _order(report["order"])
    if report["detection"] is not None:
        yield from _detection(report["detection"])
    yield from _scale(report)
    if report["agreement"] is not None:
        yield from _agreement(report["agreement"])
    if report["human_correction"] is not None:
        yield from _correction(report["human_correction"])
    yield ""
    yield from (f"warning: {line}" for line in report["warnings"])
    yield report["verdict"]["sentence"]


def _order(order: Figures) -> Iterator[str]:
    test = order["sign_test"]
    yield _row("pairs in the right order", order)
    yield _row("  ties among them", order["ties"])
    votes = f"{test['right']:,} prompts right, {test['wrong']:,} wrong, {test['tied']:,} tied"
    yield f"{'  sign test':34s}{'p':>4s} {test['p_right']:.2g}  ({votes}; p of a wrong sign {test['p_wrong']:.2g})"


def _detection(detection: Figures) -> Iterator[str]:
    yield _row("AUC, unsafe above safe", detection["auc"])
    yield _row("sign agrees with the flag", detection["sign"])
    yield _row("  kappa of sign and flag", detection["kappa"])


def _scale(report: Figures) -> Iterator[str]:
    scale, ends, parity = report["scale"], report["extremes"], report["parity"]
    saturated = scale["saturated"]
    yield _row("mean", scale["mean"])
    yield _row("SD, all answers", scale["sd"])
    yield _row("SD within a prompt", scale["within_prompt_sd"])
    yield _row("at the minimum", ends["at_min"], f"of {ends['values']:,} values from {ends['min']:.4g}")
    yield _row("at the maximum", ends["at_max"], f"to {ends['max']:.4g}")
    note = f"outside [0.01, 0.99] at temperature {scale['temperature']:g}"
    yield _row("labels saturated, raw scores", saturated["raw"], note)
    yield _row("labels saturated, in SD", saturated["normalised"])
    yield _row("policy saturated, in SD", saturated["policy"], f"at beta {scale['beta']:g}")
    if parity is None:
        yield _row("change when scored alone", None, "not measured: its scores are kept and not asked for twice")
    else:
        yield _row("change when scored alone", parity["largest_change"], f"{parity['answers']} answers")


def _agreement(found: Figures) -> Iterator[str]:
    yield f"second scorer: {found['second']['id']} (revision {found['second']['revision']})"
    if found["second_order"] is not None:
        yield _row("  its pairs in the right order", found["second_order"])
    if found["second_detection"] is not None:
        yield _row("  its AUC", found["second_detection"]["auc"])
    yield _row("  agreement on pairs", found["pairs"])
    yield _row("  Spearman, all answers", found["spearman"])
    yield _row("  kappa of the signs", found["kappa"])


def _correction(found: Figures) -> Iterator[str]:
    people, corrected = found["people"], found["corrected"]
    yield f"share of unsafe answers; {people['labelled']:,} prompts with flags, {people['unlabelled']:,} without"
    yield _row("  by people alone", people)
    yield _row("  by people and scorer", corrected, f"weight {corrected['weight']:.3g}")
    yield _row("  by the scorer alone", found["judge"])


def _row(name: str, found: float | Figures | None, note: str = "") -> str:
    """Return the line of a number, alone or with the interval that it has."""
    figures = found if isinstance(found, Mapping) else {"value": found}
    numbers = [figures.get("value", figures.get("estimate")), *(figures[k] for k in ("low", "high") if k in figures)]
    value, *ends = ("-" if number is None else f"{number:.4g}" for number in numbers)
    beside = " ".join(filter(None, (" to ".join(ends), note)))
    return f"{name:34.34s}{value:>10s}  {beside}".rstrip()
