"""Prompts of a config: read, split by hash, near-duplicates kept away from what is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dualign.config import Config, Mix, Source, WarmStart
from dualign.data.prompts import DemonstrationFile, read_demonstrations, read_prompts
from dualign.data.splits import near_clusters, split, without_leaks
from dualign.errors import ConfigError, DataError, UsageError
from dualign.job.measurement import matches, slice_of
from dualign.records import Constraint, Prompt, named

SPLITS = ("train", "tune", "report", "calibration")
"""From training to the sealed part: a prompt with a near-duplicate in a later split is dropped."""
REASONS = {"auto": "a near-duplicate", "none": "the same prompt"}
OTHER_REASON = "a prompt of the same cluster"
"""Why a prompt is dropped, by ``data.cluster``; anything else names a column."""
DEMONSTRATION_WORDS = 50
"""Prompts of more words are not imitated in a warm start."""


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
    notes = []
    read: list[tuple[Source, list[Prompt]]] = []
    every = list(given)
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
        read.append((source, found.prompts))
        every += found.every
    clusters = _clusters(config, every)
    parts = _parted(config, read, clusters)
    if given:
        parts["train"] = list({prompt.id: prompt for prompt in given}.values())
    kept, dropped = without_leaks(parts, clusters)
    gone = sum(len(prompts) for prompts in dropped.values())
    notes.append(f"{gone} prompts dropped: {REASONS.get(config.data.cluster, OTHER_REASON)} stands in a later split")
    for name in SPLITS:
        if not kept[name]:
            raise ConfigError(f"data.sources: no prompts for the split {name!r}; give it a count in splits")
    marked = {
        name: [replace(prompt, cluster=clusters[prompt.id]) for prompt in prompts] for name, prompts in kept.items()
    }
    notes += _told_units(marked)
    return marked, notes


def _clusters(config: Config, prompts: Sequence[Prompt]) -> dict[str, str]:
    """Return prompt id -> name of its cluster, as ``data.cluster`` says: by likeness, each alone, or by a column.

    ``prompts``: of every row, duplicates included.

    Raises:
        ConfigError: a prompt lacks the column, or has nothing in it, or two names.
    """
    column = config.data.cluster
    if column == "auto":
        return near_clusters(prompts)
    if column == "none":
        return {prompt.id: prompt.id for prompt in prompts}
    lacking = [prompt for prompt in prompts if column not in prompt.columns]
    if lacking:
        known = sorted({name for prompt in prompts for name in prompt.columns})
        raise ConfigError(
            f"data.cluster: {len(lacking)} of {len(prompts)} prompts have no column {column!r} (the first begins "
            f"{lacking[0].text[:40]!r}); the columns are {', '.join(known) or 'none'}, and auto and none need none"
        )
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        name, before = prompt.columns[column], first.setdefault(prompt.id, prompt)
        if not name.strip():
            raise ConfigError(
                f"data.cluster: column {column!r} holds nothing for {named(prompt)}; give a prompt that stands alone a "
                "name of its own"
            )
        if before.columns[column] != name:
            raise ConfigError(
                f"data.cluster: {named(prompt)} lies in {column} {name!r} here and in {before.columns[column]!r} at "
                f"{named(before)}; a prompt belongs to exactly one cluster"
            )
    return {prompt: one.columns[column] for prompt, one in first.items()}


def _parted(
    config: Config, read: Sequence[tuple[Source, list[Prompt]]], clusters: Mapping[str, str]
) -> dict[str, list[Prompt]]:
    """Return the prompts of each split, every source divided on its own, whole clusters on one side."""
    parts: dict[str, list[Prompt]] = {name: [] for name in SPLITS}
    for source, prompts in read:
        chosen: dict[str, Any] = {str(name): value for name, value in (source.splits or config.data.splits).items()}
        try:
            shares = split(prompts, chosen, config.run.seed, clusters=clusters)
        except DataError as error:
            raise DataError(f"{source.path}: {error}") from None
        for name, taken in shares.items():
            parts[name] += taken
    return parts


def units(prompts: Sequence[Prompt]) -> int:
    """Return how many units of independence there are: clusters, each prompt of no cluster counted alone."""
    return len({prompt.cluster for prompt in prompts})


def _told_units(splits: Mapping[str, Sequence[Prompt]]) -> list[str]:
    """Return a sentence for each measured split whose prompts are not all independent."""
    return [
        f"{name}: {len(splits[name])} prompts are {units(splits[name])} units (near-copies, or one cluster, count once)"
        for name in ("tune", "calibration", "report")
        if units(splits[name]) < len(splits[name])
    ]


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
                continue  # ``demonstration_notes`` counts its rows
            count = sum(matches(prompt, mix.where) for prompt in splits["train"])
            if mix.count > count:
                raise ConfigError(f"{where}, where {mix.where}), one a prompt, and {count} train prompts are there")


def demonstration_notes(config: Config, folder: Path) -> list[str]:
    """Return a sentence for each entry of a warm start that imitates the rows of a file: what is left out, and why.

    Raises:
        MissingError: a file is missing.
        DataError: a file is broken, or knows no column that ``where`` names.
        ConfigError: more examples are wanted than there are prompts to imitate an answer to.
    """
    notes = []
    for number, stage in enumerate(config.policy.warm_start):
        for mix in stage.mix:
            if mix.target != "demonstration" or stage.demonstrations is None:
                continue
            found = demonstrations_of(config, folder, stage, mix)
            count = len({prompt.id for prompt, _ in found.demonstrations})
            where = f", where {mix.where}" if mix.where else ""
            out = f"{found.filtered} outside where, {found.too_long} of more than {DEMONSTRATION_WORDS} words"
            bad = f"{found.negative} with an answer that is marked as bad, {len(found.broken)} broken"
            if mix.count > count:
                raise ConfigError(
                    f"policy.warm_start.{number}: {mix.count} examples wanted (demonstration{where}), one a prompt, "
                    f"and {count} prompts of {stage.demonstrations} are there"
                )
            notes.append(
                f"{Path(stage.demonstrations).name}: {found.layout}, {count} prompts to imitate an answer to{where} "
                f"({found.rows} rows: {out}, {bad})"
            )
    return notes


def demonstrations_of(config: Config, folder: Path, stage: WarmStart, mix: Mix) -> DemonstrationFile:
    """Return the rows that an entry of a warm start may imitate: those inside ``where``, and no bad answer.

    Raises:
        MissingError: the file is missing.
        DataError: nothing is left, ``where`` names no column, or more rows are broken than ``data.max_drop`` allows.
        ConfigError: ``rename`` has a name that nothing is read as.
    """
    path = source_path(config, folder, str(stage.demonstrations))
    try:
        found = read_demonstrations(
            path, where=mix.where, max_words=DEMONSTRATION_WORDS, rename=stage.rename, imitated=True
        )
    except UsageError as error:
        raise ConfigError(f"policy.warm_start: {stage.demonstrations}: rename: {error}") from None
    if len(found.broken) > config.data.max_drop * found.rows:
        raise DataError(
            f"{found.broken[0]} ({len(found.broken)} of {found.rows} rows are broken, {config.data.max_drop:.1%} are "
            "allowed: data.max_drop)"
        )
    return found


def source_path(config: Config, folder: Path, path: str) -> Path:
    """Return where a relative path of the config starts: ``data.prompts``, else the config's folder."""
    base = Path(config.data.prompts) if config.data.prompts is not None else folder
    return base / Path(path).expanduser()


__all__ = [
    "SPLITS",
    "Source",
    "check_mixes",
    "check_slices",
    "demonstration_notes",
    "demonstrations_of",
    "load_splits",
    "source_path",
    "units",
]
