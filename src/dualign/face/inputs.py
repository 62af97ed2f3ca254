"""What a Python user has in memory -> what the parts read: numbers, tables of rows, numbers by name."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dualign.data.rows import LARGEST, Row, prompt_cell
from dualign.data.table_files import Row as NumberedRow
from dualign.data.table_files import renamed
from dualign.errors import ArgumentError, nearest
from dualign.records import FloatArray, Prompt

Named = float | Mapping[str, float]
"""A number where there is one cost, else name -> number."""
Table = Any
"""A pandas frame, a ``datasets.Dataset``, a list of mappings, or a mapping of columns."""


def number(argument: str, value: object, *, above: float = -math.inf) -> float:
    """Return a finite number above ``above``.

    Raises:
        ArgumentError: it is none.
    """
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        found = float(value)
        if abs(found) <= LARGEST and found > above:
            return found
    wanted = "expected a finite number; given" if above == -math.inf else f"must be a number above {above:g}, got"
    raise ArgumentError(f"{argument}: {wanted} {value!r}")


def numbers(argument: str, values: ArrayLike) -> FloatArray:
    """Return one finite number a prompt, shape ``[prompt]``.

    Raises:
        ArgumentError: the values have another shape, are no numbers, or one is not finite.
    """
    detached = values.detach().cpu() if hasattr(values, "detach") else values  # a tensor of torch
    try:
        found = np.asarray(detached)
    except (ValueError, TypeError):
        found = np.empty((0, 0))
    if found.ndim != 1:
        shape = f"shape {found.shape}" if found.size else type(values).__name__
        raise ArgumentError(f"{argument}: one number a prompt is needed, in one dimension; given {shape}")
    if found.size and found.dtype.kind not in "biuf":
        wrong = next((value for value in found.tolist() if not isinstance(value, int | float)), found[0])
        raise ArgumentError(f"{argument}: expected numbers; given {wrong!r}")
    found = found.astype(np.float64)
    bad = np.flatnonzero(~(np.abs(found) <= LARGEST))
    if bad.size:
        raise ArgumentError(f"{argument}: value {bad[0]} is {found[bad[0]]:g}; expected finite numbers")
    return found


def by_name(argument: str, given: object, names: Sequence[str], *, bare: str | None) -> dict[str, Any]:
    """Return name -> value of ``{name: value}``, or of a value alone where ``bare`` says whose it is.

    Raises:
        ArgumentError: an unknown name, a name twice, or a value alone that could be of several names.
    """
    found: dict[str, Any] = {}
    for key, value in (given if isinstance(given, Mapping) else {"": given}).items():
        name = key or bare
        if name is None:
            known, said = ", ".join(names), f"{value:g}" if isinstance(value, int | float) else value
            raise ArgumentError(
                f"{argument} {said}: which of {known}? costs have names; write NAME={said}, NAME of {known}"
            )
        if name not in names:
            raise ArgumentError(f"{argument}: there is no cost {name!r}; {nearest(name, names)}")
        if name in found:
            raise ArgumentError(f"{argument}: given twice for {name!r}; give it once")
        found[name] = value
    return found


def is_table(given: object) -> bool:
    """Return whether something is a table: a frame, a data set, a mapping of columns, or a list of mappings."""
    if isinstance(given, Mapping) or hasattr(given, "columns") or hasattr(given, "column_names"):
        return True
    return isinstance(given, Sequence) and len(given) > 0 and isinstance(given[0], Mapping)


def rows_of(argument: str, table: Table, columns: Mapping[str, str] | None = None) -> list[tuple[int, Row]]:
    """Return 1-based numbers and rows of a table in memory, cells as Python's own values.

    ``columns``: column of the table by the name that it is read as.

    Raises:
        ArgumentError: it is no table, has columns of unequal length, or has no rows.
        DataError: it has no such column.
    """
    if hasattr(table, "to_dict") and hasattr(table, "columns"):
        table = table.to_dict("records")
    elif isinstance(table, Mapping):
        by_column = {str(name): list(values) for name, values in table.items()}
        if len({len(values) for values in by_column.values()}) > 1:
            lengths = ", ".join(f"{name} {len(values)}" for name, values in by_column.items())
            raise ArgumentError(f"{argument}: columns of unequal length: {lengths}")
        table = [dict(zip(by_column, values, strict=True)) for values in zip(*by_column.values(), strict=True)]
    if isinstance(table, str | bytes) or not isinstance(table, Iterable):
        raise ArgumentError(f"{argument}: rows are needed; given {type(table).__name__}")
    given = list(table)
    wrong = next((row for row in given if not isinstance(row, Mapping)), None)
    if wrong is not None:
        raise ArgumentError(f"{argument}: a row is {type(wrong).__name__}; a mapping of columns is needed")
    if not given:
        raise ArgumentError(f"{argument}: no rows; without data nothing can be said")
    rows = [NumberedRow(k, {str(name): _plain(cell) for name, cell in row.items()}) for k, row in enumerate(given, 1)]
    return [(row.line, row.values) for row in renamed(rows, argument, columns or {})]


def _plain(cell: Any) -> Any:
    """Return a scalar of numpy or torch as Python's own, everything else as it is."""
    return cell.item() if hasattr(cell, "item") and getattr(cell, "ndim", 0) == 0 else cell


def prompts_in(argument: str, given: Any) -> list[Prompt]:
    """Return the prompts in memory: texts, messages, rows, a frame, a data set, or ``Prompt`` objects.

    Raises:
        ArgumentError, DataError: there are none, or one is no prompt.
    """
    if isinstance(given, str):
        raise ArgumentError(f"{argument}: prompts are needed, in a list or a table; given one text")
    if isinstance(given, Sequence) and given and all(isinstance(one, Prompt) for one in given):
        return list(given)
    if isinstance(given, Sequence):
        given = [{"prompt": one} if isinstance(one, str | list) else one for one in given]
    return [_prompt(argument, number, row) for number, row in rows_of(argument, given)]


def _prompt(argument: str, number: int, row: Row) -> Prompt:
    """Return the prompt of a row, its other columns as texts."""
    columns = {
        name: str(cell) for name, cell in row.items() if isinstance(cell, str | int | float) and name != "prompt"
    }
    return replace(prompt_cell(Path(argument), number, row), columns=columns)


def pairs_in(argument: str, given: Any) -> list[tuple[Prompt, str, str]]:
    """Return (prompt, chosen, rejected) of rows in memory.

    Raises:
        ArgumentError, DataError: they are no pairs.
    """
    if given is None:
        return []
    if isinstance(given, Sequence) and given and all(isinstance(one, tuple) for one in given):
        return [(prompt if isinstance(prompt, Prompt) else Prompt(prompt), *answers) for prompt, *answers in given]
    found = []
    for number, row in rows_of(argument, given):
        answers = [row.get(name) for name in ("chosen", "rejected")]
        if not all(isinstance(answer, str) for answer in answers):
            raise ArgumentError(f"{argument}: row {number} has no texts 'chosen' and 'rejected'")
        found.append((prompt_cell(Path(argument), number, row), str(answers[0]), str(answers[1])))
    return found
