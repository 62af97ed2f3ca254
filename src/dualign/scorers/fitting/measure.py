"""How good fitted scores are on pairs that they were not fitted to: order, sign, calibration, all by category."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualign.data.preferences import Answer
from dualign.maths.agreement import (
    ReliabilityBin,
    Share,
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
class Calibration:
    """How often forecasts come true."""

    error: float
    """Expected calibration error."""
    noise: float
    """What it would be on average were every forecast true as often as it says."""
    table: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, slots=True)
class Forecasts:
    """Probabilities, whether they came true (1, 0, and a half for a tie), and whose prompt."""

    probability: FloatArray
    outcome: FloatArray
    prompt: NDArray[np.int64]
    hit: FloatArray
    """1 where the forecast is on the right side, strictly."""
    categories: tuple[frozenset[str], ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """Accuracy with a 95 % interval clustered by prompt, and calibration."""

    accuracy: Share
    calibration: Calibration


@dataclass(frozen=True, slots=True)
class Measure:
    """All figures of one set of pairs."""

    order: Figures
    """P(the higher answer scores higher): the share of pairs, ties counting as wrong, and sigmoid(difference)."""
    sign: Figures | None
    """P(unsafe): the share of answers with the sign of their flag, and sigmoid(cost); none without flags."""
    order_by_category: dict[str, Figures]
    sign_by_category: dict[str, Figures]
    mean: float
    deviation: float
    """Of the scores of all answers."""


def measure(
    pairs: Sequence[LabelledPair], higher: FloatArray, lower: FloatArray, *, signed: bool, seed: int
) -> Measure:
    """Return the figures of scores ``higher`` and ``lower``, each ``[pair]``.

    Args:
        pairs: what the scores are of.
        higher: scores of the answers that should score higher.
        lower: scores of the others.
        signed: whether the scores' zero was fitted to flags.
        seed: of the draws that tell how large the calibration error is by noise alone.
    """
    order = order_forecasts(pairs, higher, lower)
    sign = sign_forecasts(pairs, higher, lower) if signed else None
    everything = np.concatenate([higher, lower])
    return Measure(
        order=figures(order, PAIR_EDGES, seed),
        sign=None if sign is None else figures(sign, SIGN_EDGES, seed),
        order_by_category=by_category(order, PAIR_EDGES, seed),
        sign_by_category={} if sign is None else by_category(sign, SIGN_EDGES, seed),
        mean=float(everything.mean()),
        deviation=float(everything.std(ddof=1)),
    )


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


def figures(forecasts: Forecasts, edges: FloatArray, seed: int) -> Figures:
    """Return accuracy and calibration of some forecasts."""
    probability, outcome, prompt = forecasts.probability, forecasts.outcome, forecasts.prompt
    return Figures(
        clustered_share(forecasts.hit, prompt),
        Calibration(
            error=expected_calibration_error(probability, outcome, edges=edges),
            noise=calibration_noise(probability, edges=edges, seed=seed),
            table=reliability_table(probability, outcome, prompt, edges=edges),
        ),
    )


def by_category(forecasts: Forecasts, edges: FloatArray, seed: int) -> dict[str, Figures]:
    """Return the figures of each category, largest first; rows of several count in each, those of none by ``none``."""
    names = sorted({name for found in forecasts.categories for name in found})
    if not names:
        return {}
    inside = {name: np.array([name in found for found in forecasts.categories]) for name in names}
    inside[NO_CATEGORY] = np.array([not found for found in forecasts.categories])
    largest = sorted((name for name in inside if inside[name].any()), key=lambda name: (-inside[name].sum(), name))
    return {name: figures(_of(forecasts, inside[name]), edges, seed) for name in largest}


def _of(forecasts: Forecasts, rows: NDArray[np.bool_]) -> Forecasts:
    kept = tuple(found for found, inside in zip(forecasts.categories, rows, strict=True) if inside)
    return Forecasts(
        forecasts.probability[rows], forecasts.outcome[rows], forecasts.prompt[rows], forecasts.hit[rows], kept
    )


def _prompts(pairs: Sequence[LabelledPair]) -> NDArray[np.int64]:
    return np.unique(np.array([pair.prompt.id for pair in pairs]), return_inverse=True)[1].astype(np.int64)


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
