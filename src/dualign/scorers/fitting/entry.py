"""From a config to a scorer in a folder, measured on prompts that it was not fitted to."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dualign.data.formats.table import read_preferences
from dualign.data.preferences import PreferenceRow
from dualign.engine.limits import positions, usable_length
from dualign.errors import ConfigError, UsageError
from dualign.records import FloatArray
from dualign.runs.store import write_json, write_text
from dualign.scorers.fitting.config import FitConfig
from dualign.scorers.fitting.hidden import config_of, located
from dualign.scorers.fitting.measure import measure
from dualign.scorers.fitting.objective import meaning_of_zero, objective_name
from dualign.scorers.fitting.pairs import LabelledPair, answers, pairs_of
from dualign.scorers.fitting.paths import PATHS, Fit, Tell
from dualign.scorers.fitting.report import measure_json
from dualign.scorers.protocol import Scorer

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
    write_text(out / SCORER, yaml.safe_dump(fit.description, sort_keys=False, allow_unicode=True))
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
