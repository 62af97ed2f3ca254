"""A file of scored responses of the reference -> the arrays that ``dualign plan`` solves.

Rows of ``prompt``, ``reward`` and ``cost`` (or ``cost_<name>`` columns); optional ``response``, ``weight`` (reference
probability: the rows of a prompt are then its whole support), ``prompt_weight``, ``scorer``, ``revision``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dualign.data.rows import Row, number_cell, read_rows, refuse, text_cell
from dualign.errors import DataError
from dualign.maths.finite import FloatArray

PREFIX = "cost_"


@dataclass(frozen=True, slots=True)
class Scores:
    """Scored responses, raw units; prompts with fewer responses are padded."""

    prompts: tuple[str, ...]
    """In the order of first appearance."""
    log_weights: FloatArray
    """Shape ``[prompt, response]``: log of the reference probability, equal shares for draws; ``-inf`` = padding."""
    reward: FloatArray
    """Shape ``[prompt, response]``."""
    costs: Mapping[str, FloatArray]
    """Cost name -> ``[prompt, response]``; ``cost`` for the plain column, ``<name>`` for ``cost_<name>``."""
    prompt_weights: FloatArray
    """Shape ``[prompt]``, sums to one."""
    draws: bool
    """Whether the responses are samples; false where the file gives their probabilities."""


def read_scores(path: Path) -> Scores:
    """Return the scores in ``path``.

    Raises:
        MissingError: the file is absent or cannot be read.
        DataError: an empty file or a faulty row; the message names file, line and column.
    """
    rows = read_rows(path, what="scored responses: prompt, reward and cost (or cost_NAME)")
    header = list(dict.fromkeys(key for _, row in rows for key in row))
    names = _cost_columns(path, header)
    for column in ("prompt", "reward"):
        if column not in header:
            raise DataError(f"{path}: no column {column!r}; the columns are {', '.join(header)}")
    members: dict[str, list[int]] = {}
    for position, (line, row) in enumerate(rows):
        members.setdefault(text_cell(path, line, row, "prompt"), []).append(position)
    for prompt, positions in members.items():
        if len(positions) < 2:
            raise DataError(
                f"{path}, line {rows[positions[0]][0]}: prompt {prompt[:60]!r} has one response; two are needed"
            )
    columns = {column: _numbers(path, rows, column) for column in ("reward", *names.values())}
    weights = _positive(path, rows, "weight") if "weight" in header else np.ones(len(rows))
    groups = list(members.values())
    return Scores(
        prompts=tuple(members),
        log_weights=_log_shares(weights, groups),
        reward=_padded(columns["reward"], groups),
        costs={name: _padded(columns[column], groups) for name, column in names.items()},
        prompt_weights=_prompt_weights(path, rows, groups, given="prompt_weight" in header),
        draws="weight" not in header,
    )


def _cost_columns(path: Path, header: Sequence[str]) -> dict[str, str]:
    columns = [column for column in header if column == "cost" or column.startswith(PREFIX)]
    names = {column.removeprefix(PREFIX): column for column in columns}
    if not names or "" in names:
        raise DataError(f"{path}: no cost column; expected 'cost' or 'cost_<name>', found {', '.join(header)}")
    if len(names) < len(columns):
        raise DataError(f"{path}: the columns 'cost' and 'cost_cost' have the same name; rename one")
    return names


def _numbers(path: Path, rows: Sequence[tuple[int, Row]], column: str) -> FloatArray:
    return np.array([number_cell(path, line, row, column) for line, row in rows])


def _positive(path: Path, rows: Sequence[tuple[int, Row]], column: str) -> FloatArray:
    values = _numbers(path, rows, column)
    for (line, _), value in zip(rows, values, strict=True):
        if not value > 0:
            refuse(path, line, column, float(value), "a number above 0 (leave out what has no probability)")
    return values


def _padded(values: FloatArray, groups: Sequence[Sequence[int]], *, fill: float = 0.0) -> FloatArray:
    table = np.full((len(groups), max(map(len, groups))), fill)
    for row, positions in enumerate(groups):
        table[row, : len(positions)] = values[list(positions)]
    return table


def _log_shares(weights: FloatArray, groups: Sequence[Sequence[int]]) -> FloatArray:
    logs = _padded(np.log(weights), groups, fill=-np.inf)
    peak = logs.max(axis=1, keepdims=True)
    totals: FloatArray = peak + np.log(np.exp(logs - peak).sum(axis=1, keepdims=True))
    return logs - totals


def _prompt_weights(
    path: Path, rows: Sequence[tuple[int, Row]], groups: Sequence[Sequence[int]], *, given: bool
) -> FloatArray:
    if not given:
        return np.full(len(groups), 1 / len(groups))
    values = _positive(path, rows, "prompt_weight")
    for positions in groups:
        for position in positions[1:]:
            if values[position] != values[positions[0]]:
                wanted = f"{values[positions[0]]:g}, as in the prompt's first row"
                refuse(path, rows[position][0], "prompt_weight", float(values[position]), wanted)
    first = np.array([values[positions[0]] for positions in groups])
    shares: FloatArray = first / first.max()
    shares /= shares.sum()
    return shares
