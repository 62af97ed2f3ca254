"""Tables: the rows of a file or of data in memory, under the names that their columns are read as."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from dualign.data.cells import RowError, at
from dualign.data.table_files import (
    BY_COLUMN,
    COLUMN,
    EMPTY,
    MENDS,
    READERS,
    TEXTUAL,
    Row,
    TableError,
    check_columns,
    ending,
    numbered,
    read_bytes,
)
from dualign.errors import DataError, UsageError, nearest

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows, and what messages call them."""

    name: str
    """The file as it was named, or what data in memory are for."""
    rows: Sequence[Row]
    textual: bool = False
    """Whether every cell is a text, as in CSV, so that a text there may be a number or a flag."""
    unit: str = "line"
    """What a row's number counts."""

    @property
    def columns(self) -> list[str]:
        """Return every column that some row has, in the order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row.values))

    @property
    def first(self) -> dict[str, Any]:
        """Return every column, each with the first value that some row has there."""
        values: dict[str, Any] = {}
        for row in self.rows:
            for name, value in row.values.items():
                if values.get(name) is None:
                    values[name] = value
        return values

    def place(self, line: int) -> str:
        """Return what messages call a row."""
        return f"{self.name}: {self.unit} {line}"

    def refusal(self, line: int, what: str) -> DataError:
        """Return the error of a row."""
        return DataError(f"{self.place(line)}: {what}")

    def each(self, read: Callable[[Row], Made]) -> list[Made]:
        """Return what ``read`` makes of every row.

        Raises:
            DataError: it raised ``RowError``; the row's place is named.
        """
        made = []
        for row in self.rows:
            try:
                made.append(read(row))
            except RowError as error:
                raise self.refusal(row.line, error.what) from None
        return made


Source = str | Path | Table | Iterable[Any]
"""What readers take: the name of a file, a table, or data in memory (``in_memory``)."""


def read_table(source: Source, *, named: str | None = None) -> Table:
    """Return the table of a file, read by the ending of its name, or of data in memory.

    ``named``: what messages call the file, where that is not its path.

    Raises:
        MissingError: there is no such file, or it cannot be read.
        DataError: the ending is unknown, a line is broken (its number is named), or there are no rows.
    """
    if not isinstance(source, str | Path):
        return source if isinstance(source, Table) else in_memory(source)
    path = Path(source)
    reader = READERS.get(ending(path))
    if reader is None:
        read_bytes(path)  # a folder, or no file at all, is said before an ending is
        hint = f"; {MENDS[ending(path)]}" if ending(path) in MENDS else ""
        known = f"known: {', '.join(READERS)} (and .gz after them)"
        raise TableError(path, f"unknown ending {ending(path)!r}; {known}{hint}")
    return _filled(Table(named or str(path), reader(path), ending(path) in TEXTUAL))


def in_memory(data: Any, name: str = "data") -> Table:
    """Return the table of a data set, a data frame, or mappings of columns to values; rows count from 1.

    A text by itself is a prompt, and so is a list of messages. ``name`` is what messages call the data.

    Raises:
        DataError: there are no rows, one is none of these, two columns have one name, or the data are columns.
    """
    if hasattr(data, "columns") and hasattr(data, "to_dict"):  # a frame of pandas, whose gaps are NaN or NA
        check_columns(list(data.columns), name)
        data = data.astype(object).where(data.notna(), None).to_dict("records")
    if isinstance(data, Mapping):
        raise TableError(name, BY_COLUMN)
    rows = (_plain({COLUMN: value} if isinstance(value, str | list) else value) for value in data)
    return _filled(Table(name, numbered(rows, name), unit="row"))


def _plain(value: Any) -> Any:
    """Return a value with scalars and arrays of NumPy as numbers and lists, and tuples as lists."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    held = value.tolist() if hasattr(value, "tolist") else value
    return _plain(held) if isinstance(held, list) else held


def _filled(table: Table) -> Table:
    if not table.rows:
        raise TableError(table.name, "has no rows", rule=EMPTY)
    return table


def read_rows(path: str | Path) -> Sequence[Row]:
    """Return the rows of ``read_table`` alone."""
    return read_table(path).rows


def check_readable(columns: Mapping[str, str], names: Iterable[str], *, unknown: str = "nothing is read as") -> None:
    """Check that each name that a column is to be read as is one of ``names``; ``cost_*`` stands for all that so begin.

    Raises:
        UsageError: another name.
    """
    known = list(dict.fromkeys(names))
    for read in columns:
        if not any(fnmatch.fnmatchcase(read, pattern) for pattern in known):
            raise UsageError(f"columns: {unknown} {read!r}; {nearest(read, known)}")


def renamed(table: Table, columns: Mapping[str, str]) -> Table:
    """Return the table with columns under the names that they are read as; a column that had such a name gives way.

    ``columns``: column of the file by that name, ``{"prompt": "question"}``; a path reaches into objects and lists
    (``output.completion``, ``resps.0.0``), and what it leads to becomes a column beside the others.

    Raises:
        UsageError: one column is to be read as two.
        DataError: no row has such a column.
    """
    if not columns:
        return table
    if len(set(columns.values())) < len(columns):
        raise UsageError("columns: one column of the file is to be read as two")
    names = table.columns
    for read, name in columns.items():
        if name not in names and all(at(row.values, name) is None for row in table.rows):
            raise DataError(f"{table.name}: no column {name!r} to read as {read!r}; {nearest(name, names)}")
    return replace(table, rows=[Row(row.line, _renamed(row.values, columns)) for row in table.rows])


def _renamed(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    old = {*columns, *columns.values()}
    found = {name: at(values, column) for name, column in columns.items()}
    read = {name: value for name, value in found.items() if value is not None or columns[name] in values}
    return {**read, **{name: value for name, value in values.items() if name not in old}}
