"""The ways to fit a scorer, one function each and one table: pairs in, a scorer in a folder out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from dualign.data.formats.table import read_preferences
from dualign.data.preferences import PreferenceRow
from dualign.data.splits import split
from dualign.errors import ConfigError, DataError, UsageError
from dualign.models.tensors import positions, usable_length
from dualign.protocols import Scorer
from dualign.records import FloatArray
from dualign.runs.store import write_json, write_text
from dualign.scorers.fitted import FittedScorer
from dualign.scorers.fitting.config import FitConfig
from dualign.scorers.fitting.hidden import RememberedStates, config_of, located
from dualign.scorers.fitting.light import fit_light, open_reader
from dualign.scorers.fitting.linear import meaning_of_zero, objective_name
from dualign.scorers.fitting.measure import measure, measure_json
from dualign.scorers.fitting.pairs import LabelledPair, answers, pairs_of
from dualign.strict import dump_yaml

Tell = Callable[[str], None]
Pairs = tuple[LabelledPair, ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """What a path gives."""

    train: Pairs
    held_out: Pairs
    too_long: int
    """Pairs left out, because an answer was longer than the model takes."""
    scorer: Scorer
    """Gives the scores of the scorer in the folder."""
    description: dict[str, Any]
    """Of the scorer, beside its files: paths start in their folder, so that it can be moved."""
    how: dict[str, Any]
    """Facts for the report."""


class FitPath(Protocol):
    """One way to fit."""

    def __call__(self, pairs: Pairs, config: FitConfig, *, objective: str, folder: Path, out: Path, tell: Tell) -> Fit:
        """Return the fit to the training part of ``pairs``, whose files are in ``out``."""


def light(pairs: Pairs, config: FitConfig, *, objective: str, folder: Path, out: Path, tell: Tell) -> Fit:
    """Return the fit of a linear head on frozen features."""
    reader = open_reader(config, folder)
    kept = pairs
    if reader is not None:
        distinct = answers(pairs)
        lengths = reader.lengths(*distinct.columns())
        longest = [max(lengths[h], lengths[l]) for h, l in zip(distinct.higher, distinct.lower, strict=True)]
        kept = _short(pairs, longest, config)
    train, held_out = split_pairs(kept, config)
    states = None
    if reader is not None:
        distinct = answers(kept)
        tell(f"hidden states of {len(distinct.texts):,} answers, layer {reader.settings.layer}")
        states = RememberedStates(reader, *distinct.columns())
    fitted = fit_light(train, config, objective=objective, reader=states, tell=tell)
    fitted.head.save(out)
    how = {
        "decay": fitted.decay,
        "losses_left_out": {f"{decay:g}": loss for decay, loss in fitted.losses.items()},
        "features": config.features,
        "states": None if reader is None else asdict(reader.settings),
    }
    scorer = FittedScorer(fitted.head, config.kind, out.resolve().name)
    description = {"kind": "fitted", "path": "."}
    return Fit(train, held_out, len(pairs) - len(kept), scorer, description, how)


def trained(pairs: Pairs, config: FitConfig, *, objective: str, folder: Path, out: Path, tell: Tell) -> Fit:
    """Return the fit of a whole language model, by LoRA or in full."""
    from dualign.scorers.fitting import training
    from dualign.scorers.table import make_scorer

    language_model = training.load_backbone(config, folder)
    encoded = training.encode(pairs, config, language_model.tokenizer)
    kept = _short(pairs, [max(len(pair.higher), len(pair.lower)) for pair in encoded], config)
    train, held_out = split_pairs(kept, config)
    tokens = training.encode(train, config, language_model.tokenizer)
    weights = out / "training"
    report, head = training.fit_score_model(
        language_model, tokens, config, objective=objective, folder=weights, tell=tell
    )
    # The trained copy is let go before another one is read to be merged.
    del language_model
    training.export(config, folder, weights, head, out / "model")
    description = {
        "kind": "score-checkpoint",
        "model": "model",
        "template": config.template,
        "max_length": config.max_length,
    }
    # Loaded as a job would load it, so that the merged weights are measured and not those in memory.
    scorer = make_scorer(description, direction=config.kind, folder=out)
    return Fit(train, held_out, len(pairs) - len(kept), scorer, description, asdict(report))


PATHS: Mapping[str, FitPath] = {"light": light, "lora": trained, "full": trained}


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


def _short(pairs: Pairs, lengths: Sequence[int], config: FitConfig) -> Pairs:
    return tuple(pair for pair, length in zip(pairs, lengths, strict=True) if length <= config.max_length)


REPORT, SCORER = "report.json", "scorer.yaml"


def fit_scorer(config: FitConfig, folder: Path, out: Path, tell: Tell) -> dict[str, Any]:
    """Return the report of a fit whose scorer and report are in ``out``.

    Args:
        config: what to fit.
        folder: where relative paths start.
        out: made where it is missing.
        tell: is told of the steps that take time.

    Raises:
        DataError: the data has no pairs for this, or too few prompts.
        MissingError: a file or the model is missing.
        NumericalError: the fit did not converge.
    """
    started = time.monotonic()
    config = within_model(config, folder)
    found = pairs_of(read(config, folder, tell), config.kind)
    objective = objective_name(config.kind, signed=found.signed)
    fit = PATHS[config.path](found.pairs, config, objective=objective, folder=folder, out=out, tell=tell)
    seconds = time.monotonic() - started
    tell(f"measuring on {len(fit.held_out):,} held-out pairs")
    higher, lower = scored(fit.scorer, fit.held_out)
    figures = measure(fit.held_out, higher, lower, signed=found.signed, seed=config.seed)
    report = {
        "kind": config.kind,
        "path": config.path,
        "objective": objective,
        "zero": meaning_of_zero(config.kind, objective),
        "data": {"files": config.data.files, "left_out": _left_out(found.left_out, fit), **_sizes(fit)},
        "held_out": measure_json(figures),
        "fit": fit.how,
        "scorer": fit.description,
        "revision": fit.scorer.revision,
        "seconds": seconds,
        "out": str(out),
        "config": config.model_dump(),
    }
    write_text(out / SCORER, dump_yaml(fit.description))
    write_json(out / REPORT, report)
    return report


def within_model(config: FitConfig, folder: Path) -> FitConfig:
    """Return ``config`` with a ``max_length`` that its model can hold: a default one gives way.

    Raises:
        ConfigError: the config states more than the model can hold.
    """
    if config.model is None:
        return config
    longest, stated = positions(config_of(located(config.model, folder))), "max_length" in config.model_fields_set
    try:
        length = usable_length(config.max_length, longest, stated=stated, what="max_length")
    except UsageError as error:
        raise ConfigError(str(error)) from None
    return config.model_copy(update={"max_length": length})


def read(config: FitConfig, folder: Path, tell: Tell) -> list[PreferenceRow]:
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


def _left_out(counts: Mapping[str, int], fit: Fit) -> dict[str, int]:
    return {**counts, "longer than max_length": fit.too_long} if fit.too_long else dict(counts)


def _sizes(fit: Fit) -> dict[str, int]:
    return {
        "train_pairs": len(fit.train),
        "train_prompts": len({pair.prompt.id for pair in fit.train}),
        "held_out_pairs": len(fit.held_out),
        "held_out_prompts": len({pair.prompt.id for pair in fit.held_out}),
    }
