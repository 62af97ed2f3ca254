"""Tables of any origin -> numbered rows, and the checks of single cells that every table shares."""

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from dualign.errors import DataError, MissingError

Row = Mapping[str, Any]
TEXTUAL = {".csv", ".tsv"}
"""Endings of files that hold texts alone, so that a text there may be a number."""


def read_rows(path: Path, *, what: str) -> list[tuple[int, Row]]:
    """Return 1-based line (or row) numbers and rows of a JSONL, CSV, TSV or Parquet file; ``what`` opens its messages.

    Raises:
        MissingError: the file is absent or cannot be read.
        DataError: an unknown ending, no rows, or a line that is not a row.
    """
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    if not path.exists():
        raise MissingError(f"{path}: no such file; expected {what}")
    if not path.is_file():
        raise MissingError(f"{path}: is not a file; expected {what}")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown ending {path.suffix!r}; expected one of {', '.join(readers)}")
    try:
        rows = list(reader(path)) if path.stat().st_size else []
    except OSError as error:
        raise MissingError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if not rows:
        raise DataError(f"{path}: no rows; expected {what}")
    return rows


def _jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {line}: not JSON ({error}); expected one object a line") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {line}: expected an object, given a {type(row).__name__}")
            yield line, row


def _csv(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            header = reader.fieldnames or []
            if len(set(header)) != len(header):
                raise DataError(f"{path}, line 1: a column stands twice; the columns are {', '.join(header)}")
            for row in reader:
                if None in row:
                    raise DataError(f"{path}, line {reader.line_num}: more fields than the header has ({len(header)})")
                yield reader.line_num, row
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from error
    yield from enumerate(table.to_pylist(), 1)


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
