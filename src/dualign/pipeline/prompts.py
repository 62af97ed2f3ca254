"""Prompts of a config: read, split by hash, near-duplicates kept away from what is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualign.config import Config, Source
from dualign.data.prompts import read_prompts
from dualign.data.splits import split, without_leaks
from dualign.errors import ConfigError, DataError, UsageError
from dualign.pipeline.measurement import matches, slice_of
from dualign.records import Constraint, Prompt

SPLITS = ("train", "tune", "report", "calibration")
"""From training to the sealed part: a prompt with a near-duplicate in a later split is dropped."""


def load_splits(
    config: Config, folder: Path, *, given: Sequence[Prompt] = ()
) -> tuple[dict[str, list[Prompt]], list[str]]:
    """Return the prompts of every split, and a sentence for each thing that was left out.

    ``given``: prompts of given pairs; with any, they are the train split.

    Raises:
        MissingError: a file is missing.
        DataError: a row is broken, or prompts run out.
        ConfigError: a split that the job needs has no prompts.
    """
    parts: dict[str, list[Prompt]] = {name: [] for name in SPLITS}
    notes = []
    for source in config.data.sources:
        try:
            found = read_prompts(
                source_path(config, folder, source.path),
                columns=source.columns,
                where=source.where,
                max_words=source.max_words,
                rename=source.rename,
            )
        except UsageError as error:
            raise ConfigError(f"data.sources: {source.path}: rename: {error}") from None
        alike = f" ({found.alike} of them in another letter case, white space or Unicode form)" if found.alike else ""
        left = f"{found.rows} rows, {found.too_long} too long, {found.duplicates} duplicates{alike}"
        notes.append(f"{Path(source.path).name}: {found.layout}, {len(found.prompts)} prompts ({left})")
        chosen: dict[str, Any] = {str(name): value for name, value in (source.splits or config.data.splits).items()}
        try:
            shares = split(found.prompts, chosen, config.run.seed)
        except DataError as error:
            raise DataError(f"{source.path}: {error}") from None
        for name, prompts in shares.items():
            parts[name] += prompts
    if given:
        parts["train"] = list({prompt.id: prompt for prompt in given}.values())
    kept, dropped = without_leaks(parts)
    gone = sum(len(prompts) for prompts in dropped.values())
    notes.append(f"{gone} prompts dropped: a near-duplicate stands in a later split")
    for name in SPLITS:
        if not kept[name]:
            raise ConfigError(f"data.sources: no prompts for the split {name!r}; give it a count in splits")
    return kept, notes


def check_slices(constraints: Sequence[Constraint], splits: Mapping[str, Sequence[Prompt]]) -> None:
    """Check that every limit's slice has prompts to train, tune and certify on.

    Raises:
        ConfigError: a slice is empty.
    """
    for constraint in constraints:
        for name in ("train", "tune", "calibration"):
            if not len(slice_of(splits[name], constraint.where)):
                raise ConfigError(
                    f"constraints.{constraint.name}.where: no {name} prompt has {dict(constraint.where)}; "
                    "check where, or the sources' columns and splits"
                )


def check_mixes(config: Config, splits: Mapping[str, Sequence[Prompt]]) -> None:
    """Check what can be known of a warm start's examples before the model has answered.

    Raises:
        ConfigError: more own answers are wanted than there are prompts, or demonstrations of no file.
    """
    for number, stage in enumerate(config.policy.warm_start):
        for mix in stage.mix:
            where = f"policy.warm_start.{number}: {mix.count} examples wanted ({mix.target}"
            if mix.target == "demonstration":
                if stage.demonstrations is None:
                    raise ConfigError(f"{where}), but demonstrations names no file")
                continue
            count = sum(matches(prompt, mix.where) for prompt in splits["train"])
            if mix.count > count:
                raise ConfigError(f"{where}, where {mix.where}), one a prompt, and {count} train prompts are there")


def source_path(config: Config, folder: Path, path: str) -> Path:
    """Return where a relative path of the config starts: ``data.prompts``, else the config's folder."""
    base = Path(config.data.prompts) if config.data.prompts is not None else folder
    return base / Path(path).expanduser()


__all__ = ["SPLITS", "Source", "check_mixes", "check_slices", "load_splits", "source_path"]
