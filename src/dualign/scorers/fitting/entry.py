"""The ways to fit a scorer, one function each and one table: pairs in, a scorer in a folder and its report out.

How good its scores are is measured on pairs that it was not fitted to: order, sign, calibration, all by category.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualign.data.formats.table import read_preferences
from dualign.data.preferences import Answer, PreferenceRow
from dualign.data.splits import split
from dualign.errors import DataError
from dualign.maths.agreement import (
    calibration_noise,
    clustered_share,
    expected_calibration_error,
    reliability_table,
)
from dualign.protocols import Scorer
from dualign.records import FloatArray
from dualign.runs.store import write_json, write_text
from dualign.scorers.encoding import usable
from dualign.scorers.fitting import training
from dualign.scorers.fitting.inputs import FitConfig, LabelledPair, answers, pairs_of, signs
from dualign.scorers.fitting.linear import fit_light, meaning_of_zero, objective_name, open_reader
from dualign.scorers.states import RememberedStates, config_of, located
from dualign.scorers.table import make_scorer
from dualign.strict import dump_yaml

Pairs = tuple[LabelledPair, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """What is fitted, from what, and where to."""

    config: FitConfig
    pairs: Pairs
    """All that the files label, held-out ones too."""
    objective: str
    """Name in ``linear.OBJECTIVES``."""
    folder: Path
    """Where relative paths of the config start."""
    out: Path
    tell: Callable[[str], None]
    """Is told of the steps that take time."""

    def short(self, lengths: Sequence[int]) -> Pairs:
        """Return the pairs that are no longer than ``max_length``, by the tokens of each one's longer answer."""
        longest = self.config.max_length
        return tuple(pair for pair, length in zip(self.pairs, lengths, strict=True) if length <= longest)


@dataclass(frozen=True, slots=True)
class Fit:
    """What a path gives."""

    train: Pairs
    held_out: Pairs
    scorer: Scorer
    """Gives the scores of the scorer in the folder."""
    description: dict[str, Any]
    """Of the scorer, beside its files: paths start in their folder, so that it can be moved."""
    how: dict[str, Any]
    """Facts for the report."""


def light(task: Task) -> Fit:
    """Return the fit of a linear head on frozen features."""
    config, kept = task.config, task.pairs
    reader, states = open_reader(config, task.folder), None
    if reader is not None:
        distinct = answers(kept)
        lengths = np.array(reader.lengths(*distinct.columns()))
        kept = task.short(np.maximum(lengths[distinct.higher], lengths[distinct.lower]).tolist())
    train, held_out = split_pairs(kept, config)
    if reader is not None:
        distinct = answers(kept)
        task.tell(f"hidden states of {len(distinct.texts):,} answers, layer {reader.settings.layer}")
        states = RememberedStates(reader, *distinct.columns())
    scorer, decay, losses = fit_light(train, config, objective=task.objective, reader=states, tell=task.tell)
    scorer = replace(scorer, id=f"fitted({task.out.resolve().name})")
    scorer.save(task.out)
    how = {
        "decay": decay,
        "losses_left_out": {f"{decay:g}": loss for decay, loss in losses.items()},
        "features": config.features,
        "states": None if reader is None else asdict(reader.settings),
    }
    return Fit(train, held_out, scorer, {"kind": "fitted", "path": "."}, how)


def trained(task: Task) -> Fit:
    """Return the fit of a whole language model, by LoRA or in full."""
    config, out = task.config, task.out
    language_model = training.load_backbone(config, task.folder)
    encoded = training.encode(task.pairs, config, language_model.tokenizer)
    train, held_out = split_pairs(task.short([max(len(pair.higher), len(pair.lower)) for pair in encoded]), config)
    tokens = training.encode(train, config, language_model.tokenizer)
    weights = out / "training"
    report, head = training.fit_score_model(
        language_model, tokens, config, objective=task.objective, folder=weights, tell=task.tell
    )
    # The trained copy is let go before another one is read to be merged.
    del language_model
    training.export(config, task.folder, weights, head, out / "model")
    shared = {"template": config.template, "max_length": config.max_length}
    description = {"kind": "score-checkpoint", "model": "model", **shared}
    # Loaded as a job would load it, so that the merged weights are measured and not those in memory.
    scorer = make_scorer(description, direction=config.kind, folder=out)
    return Fit(train, held_out, scorer, description, report)


PATHS: Mapping[str, Callable[[Task], Fit]] = {"light": light, "lora": trained, "full": trained}


def split_pairs(pairs: Sequence[LabelledPair], config: FitConfig) -> tuple[Pairs, Pairs]:
    """Return the pairs to train on and those of the held-out prompts, by hash; near duplicates are on one side.

    Raises:
        DataError: one of the sides is empty.
    """
    share = config.data.held_out
    sides = split([pair.prompt for pair in pairs], {"train": 1 - share, "held_out": share}, config.seed)
    chosen = {prompt.id for prompt in sides["held_out"]}
    train = tuple(pair for pair in pairs if pair.prompt.id not in chosen)
    held_out = tuple(pair for pair in pairs if pair.prompt.id in chosen)
    if not (train and held_out):
        prompts = len({pair.prompt.id for pair in pairs})
        raise DataError(
            f"data: {prompts} prompts cannot be split by data.held_out = {share:g}; more prompts are needed"
        )
    return train, held_out


def fit_scorer(config: FitConfig, folder: Path, out: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return the report of a fit whose scorer and report are in ``out``.

    Args:
        config: what to fit.
        folder: where relative paths start.
        out: made where it is missing.
        tell: is told of the steps that take time.

    Raises:
        DataError: the data has no pairs for this, or too few prompts.
        MissingError: a file or the model is missing.
        ConfigError: ``max_length`` is stated and more than the model can hold.
        NumericalError: the fit did not converge.
    """
    started = time.monotonic()
    if config.model is not None:
        length = usable(config, config_of(located(config.model, folder)), "max_length")
        config = config.model_copy(update={"max_length": length})
    found = pairs_of(read(config, folder, tell), config.kind)
    objective = objective_name(config.kind, signed=found.signed)
    fit = PATHS[config.path](Task(config, found.pairs, objective, folder, out, tell))
    seconds = time.monotonic() - started
    tell(f"measuring on {len(fit.held_out):,} held-out pairs")
    higher, lower = scored(fit.scorer, fit.held_out)
    left_out = dict(found.left_out)
    if too_long := len(found.pairs) - len(fit.train) - len(fit.held_out):
        left_out["longer than max_length"] = too_long
    sizes = {
        f"{side}_{what}": size
        for side, pairs in (("train", fit.train), ("held_out", fit.held_out))
        for what, size in (("pairs", len(pairs)), ("prompts", len({pair.prompt.id for pair in pairs})))
    }
    report = {
        "kind": config.kind,
        "path": config.path,
        "objective": objective,
        "zero": meaning_of_zero(config.kind, objective),
        "data": {"files": config.data.files, "left_out": left_out, **sizes},
        "held_out": measure(fit.held_out, higher, lower, signed=found.signed, seed=config.seed),
        "fit": fit.how,
        "scorer": fit.description,
        "revision": fit.scorer.revision,
        "seconds": seconds,
        "out": str(out),
        "config": config.model_dump(),
    }
    write_text(out / "scorer.yaml", dump_yaml(fit.description))
    write_json(out / "report.json", report)
    return report


def read(config: FitConfig, folder: Path, tell: Callable[[str], None]) -> list[PreferenceRow]:
    """Return the rows of all files."""
    rows: list[PreferenceRow] = []
    for name in config.data.files:
        here = folder / Path(name).expanduser()
        place = here if here.exists() else name
        file = read_preferences(place, format=config.data.format, columns=config.data.columns)
        tell(f"{file.path}: {file.format}, {len(file.rows):,} of {file.total:,} rows read")
        rows += file.rows
    return rows


def scored(scorer: Scorer, pairs: Sequence[LabelledPair]) -> tuple[FloatArray, FloatArray]:
    """Return the scores of the higher and of the lower answers, each ``[pair]``; equal answers are scored once."""
    distinct = answers(pairs)
    scores = scorer(*distinct.columns())
    return scores[distinct.higher], scores[distinct.lower]


PAIR_EDGES = np.linspace(0.5, 1.0, 6)
"""An order is forecast with probability sigmoid(|difference|), never below a half."""
SIGN_EDGES = np.linspace(0.0, 1.0, 11)
NO_CATEGORY = "none"


@dataclass(frozen=True, slots=True)
class Forecasts:
    """Probabilities, whether they came true (1, 0, and a half for a tie), and whose prompt."""

    probability: FloatArray
    outcome: FloatArray
    prompt: NDArray[np.str_]
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
        prompt=np.array([pair.prompt.id for pair in pairs]),
        hit=(difference > 0).astype(np.float64),
        categories=tuple(pair.higher.categories | pair.lower.categories for pair in pairs),
    )


def sign_forecasts(pairs: Sequence[LabelledPair], higher: FloatArray, lower: FloatArray) -> Forecasts:
    """Return the forecasts sigmoid(cost) that an answer is unsafe; an answer of several pairs counts once."""
    from scipy.special import expit

    told: dict[tuple[str, str], tuple[Answer, float]] = {}
    for number, pair in enumerate(pairs):
        for answer, score in ((pair.higher, higher[number]), (pair.lower, lower[number])):
            told.setdefault((pair.prompt.id, answer.text), (answer, float(score)))
    score = np.array([value for _, value in told.values()])
    mark = signs([answer for answer, _ in told.values()])
    return Forecasts(
        probability=np.asarray(expit(score)),
        outcome=(1 + mark) / 2,
        prompt=np.array([prompt for prompt, _ in told]),
        hit=(mark * score > 0).astype(np.float64),
        categories=tuple(answer.categories for answer, _ in told.values()),
    )


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
