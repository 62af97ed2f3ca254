"""The readers by the ending of the file's name (``.gz`` may follow), and the one function that uses them."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualign.data.sources import delimited, jsonl, parquet, text
from dualign.data.sources.rows import Row, at, read_bytes
from dualign.errors import DataError, UsageError, nearest

READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": jsonl.read_lines,
    ".ndjson": jsonl.read_lines,
    ".json": jsonl.read_list,
    ".csv": delimited.read_csv,
    ".tsv": delimited.read_tsv,
    ".parquet": parquet.read_parquet,
    ".txt": text.read_lines,
}

MENDS = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as CSV UTF-8"),
    ".eval": "write it as JSON (inspect log convert --to json)",
    **dict.fromkeys((".zip", ".zst", ".bz2", ".xz", ".tar", ".tgz"), "unpack it"),
    **dict.fromkeys((".arrow", ".feather"), "write it as Parquet"),
}
"""What to do with files of other endings that people bring."""


def ending(path: Path) -> str:
    """Return the ending that names the reader: the last one in lower case, the one before it where that is ``.gz``."""
    endings = [suffix.lower() for suffix in path.suffixes]
    return endings[-2] if len(endings) > 1 and endings[-1] == ".gz" else (endings or [""])[-1]


def renamed(rows: Sequence[Row], where: str, columns: Mapping[str, str]) -> list[Row]:
    """Return the rows with columns under the names that they are read as; a column that had such a name gives way.

    ``columns``: column of the file by that name, ``{"prompt": "question"}``; a path reaches into objects and lists
    (``output.completion``, ``resps.0.0``), and what it leads to becomes a column beside the others.

    Raises:
        UsageError: one column is to be read as two.
        DataError: no row has such a column.
    """
    if len(set(columns.values())) < len(columns):
        raise UsageError("columns: one column of the file is to be read as two")
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    for read, name in columns.items():
        if name not in names and all(at(row.values, name) is None for row in rows):
            raise DataError(f"{where}: no column {name!r} to read as {read!r}; {nearest(name, names)}")
    return [Row(row.line, _renamed(row.values, columns)) for row in rows] if columns else list(rows)


def _renamed(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    old = {*columns, *columns.values()}
    found = {name: at(values, column) for name, column in columns.items()}
    read = {name: value for name, value in found.items() if value is not None or columns[name] in values}
    return {**read, **{name: value for name, value in values.items() if name not in old}}


def readable(names: Iterable[str], columns: Mapping[str, str]) -> None:
    """Check that each name that a column is to be read as is one of ``names``; ``cost_*`` stands for all that so begin.

    Raises:
        UsageError: another name.
    """
    known = list(dict.fromkeys(names))
    for read in columns:
        if not any(fnmatch.fnmatchcase(read, pattern) for pattern in known):
            raise UsageError(f"columns: nothing is read as {read!r}; {nearest(read, known)}")


def read_rows(path: str | Path) -> list[Row]:
    """Return the rows of a file, read by the ending of its name.

    Raises:
        MissingError: there is no such file, or it cannot be read.
        DataError: the ending is unknown, a line is broken (its number is named), or there are no rows.
    """
    path = Path(path)
    reader = READERS.get(ending(path))
    if reader is None:
        read_bytes(path)  # a folder, or no file at all, is said before an ending is
        hint = f"; {MENDS[ending(path)]}" if ending(path) in MENDS else ""
        raise DataError(
            f"{path}: unknown ending {ending(path)!r}; known: {', '.join(READERS)} (and .gz after them){hint}"
        )
    rows = reader(path)
    if not rows:
        raise DataError(f"{path}: has no rows")
    return rows
