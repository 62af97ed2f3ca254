"""Given pairs: answers of a preference file, to be labelled by the scorers instead of samples of the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from dualign.config import Config, PairSource
from dualign.data.checks.check import check
from dualign.data.checks.words import in_words
from dualign.data.formats.beavertails import BEAVERTAILS, grouped
from dualign.data.formats.table import describe, read_preferences
from dualign.data.preferences import PreferenceFile, PreferenceRow
from dualign.data.splits import place
from dualign.errors import ConfigError
from dualign.pipeline.prompts import source_path
from dualign.records import Prompt

GivenPair = tuple[Prompt, str, str]
"""A prompt and two different answers; their labels in the file are not read, the scorers label them."""


def load_pairs(config: Config, folder: Path) -> tuple[list[GivenPair], list[str]]:
    """Return the pairs of the config's preference files, and a sentence for each file.

    Rows of more than two answers give each pair of them once. Single answers (BeaverTails) are put together by prompt.

    Raises:
        MissingError: a file is missing.
        DataError: a file is broken or of no known format.
        ConfigError: a file leaves no pair.
    """
    pairs: list[GivenPair] = []
    notes = []
    for source in config.data.pairs:
        found = read_preferences(
            source_path(config, folder, source.path), format=source.format, columns=source.rename or None
        )
        taken = _taken(found, source, config.run.seed)
        if not taken:
            raise ConfigError(f"data.pairs: {source.path} leaves no pair of two different answers ({describe(found)})")
        pairs += taken
        notes.append(f"{describe(found)}; {len(found.faults)} left out, {len(taken)} pairs taken")
    return pairs, notes


def checked_pairs(config: Config, folder: Path) -> list[dict[str, Any]]:
    """Return what `dualign data check` says of each of the config's preference files; words count for tokens.

    It refuses nothing: labels of the files are not read, and rows that cannot be trained on were left out.
    """
    return [
        in_words(check([source_path(config, folder, source.path)], format=source.format, columns=source.rename or None))
        for source in config.data.pairs
    ]


def _taken(found: PreferenceFile, source: PairSource, seed: int) -> list[GivenPair]:
    rows: Sequence[PreferenceRow] = grouped(found.rows) if found.format == BEAVERTAILS.name else found.rows
    pairs: dict[tuple[str, str, str], GivenPair] = {}
    for row in rows:
        if source.max_words is not None and len(row.prompt.text.split()) > source.max_words:
            continue
        place_read = f"{source.path}: line {row.line}"
        prompt = replace(row.prompt, columns={**row.prompt.columns, **source.columns}, place=place_read)
        for first, second in combinations((answer.text for answer in row.answers), 2):
            if first != second:
                pairs.setdefault((prompt.id, min(first, second), max(first, second)), (prompt, first, second))
    if source.count is None:
        return list(pairs.values())
    return sorted(pairs.values(), key=lambda pair: (place(pair[0], seed), pair[1], pair[2]))[: source.count]
