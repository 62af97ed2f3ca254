"""Tables of any origin -> numbered rows, and the checks of single cells that every table shares."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from dualign.data.sources import table
from dualign.errors import DataError, MissingError

Row = Mapping[str, Any]
TEXTUAL = {".csv", ".tsv"}
"""Endings of files that hold texts alone, so that a text there may be a number."""


def read_rows(path: Path, *, what: str) -> list[tuple[int, Row]]:
    """Return 1-based line (or row) numbers and rows of a table; ``what`` says in messages what it should hold.

    Raises:
        MissingError: the file is absent or cannot be read.
        DataError: an unknown ending, no rows, or a line that is not a row.
    """
    try:
        return [(row.line, row.values) for row in table.read_rows(path)]
    except (DataError, MissingError) as error:
        raise type(error)(f"{error}; expected {what}") from error


def text_cell(path: Path, line: int, row: Row, column: str) -> str:
    """Return a text that is not empty (an integer counts as one).

    Raises:
        DataError: anything else.
    """
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        refuse(path, line, column, value, "a text that is not empty")
    return str(value)


def number_cell(path: Path, line: int, row: Row, column: str) -> float:
    """Return a finite number; a text is one only where the file holds nothing else.

    Raises:
        DataError: anything else; a score that is missing is never filled in.
    """
    value = row.get(column)
    textual = path.suffix.lower() in TEXTUAL
    if isinstance(value, bool) or not isinstance(value, str if textual else int | float):
        refuse(path, line, column, value, "a finite number")
    try:
        number = math.nan if isinstance(value, str) and "_" in value else float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        refuse(path, line, column, value, "a finite number")
    return number


def refuse(path: Path, line: int, column: str, value: object, expected: str) -> NoReturn:
    """Raise the ``DataError`` of one cell."""
    given = "nothing" if value is None or value == "" else repr(value)[:60]
    raise DataError(f"{path}, line {line}: column {column!r} holds {given}; expected {expected}")
