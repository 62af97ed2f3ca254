"""How good fitted scores are on pairs that they were not fitted to: order, sign, calibration, all by category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualign.data.preferences import Answer
from dualign.maths.agreement import (
    calibration_noise,
    clustered_share,
    expected_calibration_error,
    reliability_table,
)
from dualign.records import FloatArray
from dualign.scorers.fitting.pairs import LabelledPair, signs

PAIR_EDGES = np.linspace(0.5, 1.0, 6)
"""An order is forecast with probability sigmoid(|difference|), never below a half."""
SIGN_EDGES = np.linspace(0.0, 1.0, 11)
NO_CATEGORY = "none"


@dataclass(frozen=True, slots=True)
class Forecasts:
    """Probabilities, whether they came true (1, 0, and a half for a tie), and whose prompt."""

    probability: FloatArray
    outcome: FloatArray
    prompt: NDArray[np.int64]
    hit: FloatArray
    """1 where the forecast is on the right side, strictly."""
    categories: tuple[frozenset[str], ...]

    def inside(self, category: str) -> Forecasts | None:
        """Return the forecasts of one category, those of none by ``none``; none: there are no such."""
        rows = np.array([category in found if found else category == NO_CATEGORY for found in self.categories])
        kept = tuple(found for found, chosen in zip(self.categories, rows, strict=True) if chosen)
        if not kept:
            return None
        return Forecasts(self.probability[rows], self.outcome[rows], self.prompt[rows], self.hit[rows], kept)

    @property
    def largest(self) -> list[str]:
        """Return the categories, those with most forecasts first; of forecasts without any category, nothing."""
        counts = Counter(name for found in self.categories for name in found or {NO_CATEGORY})
        return sorted(counts, key=lambda name: (-counts[name], name)) if set(counts) - {NO_CATEGORY} else []


def measure(
    pairs: Sequence[LabelledPair], higher: FloatArray, lower: FloatArray, *, signed: bool, seed: int
) -> dict[str, Any]:
    """Return the figures of scores ``higher`` and ``lower``, each ``[pair]``: what ``--json`` prints as ``held_out``.

    ``accuracy`` is the share of pairs whose higher answer scores higher, ties counting as wrong, beside the calibration
    of sigmoid(difference); ``sign_accuracy`` the share of answers with the sign of their flag, beside that of
    sigmoid(cost), none without flags. Intervals are 95 %, by prompt. Rows of several categories count in each.

    Args:
        pairs: what the scores are of.
        higher: scores of the answers that should score higher.
        lower: scores of the others.
        signed: whether the scores' zero was fitted to flags.
        seed: of the draws that tell how large the calibration error is by noise alone.
    """
    order = order_forecasts(pairs, higher, lower)
    sign = sign_forecasts(pairs, higher, lower) if signed else None
    categories = dict.fromkeys([*order.largest, *(sign.largest if sign else [])])
    everything = np.concatenate([higher, lower])
    return {
        **_figures(order, sign, seed),
        "by_category": {
            name: _figures(order.inside(name), sign.inside(name) if sign else None, seed) for name in categories
        },
        "mean": float(everything.mean()),
        "sd": float(everything.std(ddof=1)),
    }


def _figures(order: Forecasts | None, sign: Forecasts | None, seed: int) -> dict[str, Any]:
    return {
        "accuracy": order and asdict(clustered_share(order.hit, order.prompt)),
        "sign_accuracy": sign and asdict(clustered_share(sign.hit, sign.prompt)),
        "calibration": {
            "order": order and _calibration(order, PAIR_EDGES, seed),
            "sign": sign and _calibration(sign, SIGN_EDGES, seed),
        },
    }


def _calibration(forecasts: Forecasts, edges: FloatArray, seed: int) -> dict[str, Any]:
    """Return how often forecasts come true: the expected calibration error, that by noise alone, and the table."""
    probability, outcome = forecasts.probability, forecasts.outcome
    return {
        "error": expected_calibration_error(probability, outcome, edges=edges),
        "noise": calibration_noise(probability, edges=edges, seed=seed),
        "table": [asdict(row) for row in reliability_table(probability, outcome, forecasts.prompt, edges=edges)],
    }


def order_forecasts(pairs: Sequence[LabelledPair], higher: FloatArray, lower: FloatArray) -> Forecasts:
    """Return the forecasts of which answer is the higher: sigmoid(|difference|) for the one that scores higher."""
    from scipy.special import expit

    difference = higher - lower
    return Forecasts(
        probability=np.asarray(expit(np.abs(difference))),
        outcome=(1 + np.sign(difference)) / 2,
        prompt=_prompts(pairs),
        hit=(difference > 0).astype(np.float64),
        categories=tuple(pair.higher.categories | pair.lower.categories for pair in pairs),
    )


def sign_forecasts(pairs: Sequence[LabelledPair], higher: FloatArray, lower: FloatArray) -> Forecasts:
    """Return the forecasts sigmoid(cost) that an answer is unsafe; an answer of several pairs counts once."""
    from scipy.special import expit

    place = _prompts(pairs)
    told: dict[tuple[int, str], tuple[Answer, float]] = {}
    for number, pair in enumerate(pairs):
        for answer, score in ((pair.higher, higher[number]), (pair.lower, lower[number])):
            told.setdefault((int(place[number]), answer.text), (answer, float(score)))
    score = np.array([value for _, value in told.values()])
    mark = signs([answer for answer, _ in told.values()])
    return Forecasts(
        probability=np.asarray(expit(score)),
        outcome=(1 + mark) / 2,
        prompt=np.array([prompt for prompt, _ in told]),
        hit=(mark * score > 0).astype(np.float64),
        categories=tuple(answer.categories for answer, _ in told.values()),
    )


def _prompts(pairs: Sequence[LabelledPair]) -> NDArray[np.int64]:
    return np.unique(np.array([pair.prompt.id for pair in pairs]), return_inverse=True)[1].astype(np.int64)


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
