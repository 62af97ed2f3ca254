"""Comma- and tab-separated files with a header line."""

import csv
import io
from pathlib import Path

from dualign.data.sources.rows import Row, read_text
from dualign.errors import DataError

LARGEST_CELL = 2**26  # characters; the default of 131,072 refuses long transcripts

SEPARATORS = {",": "commas (.csv)", "\t": "tabs (.tsv)", ";": "semicolons"}
"""What separates cells, in words; no file of ours has semicolons, many spreadsheets write them."""
DECIMAL_COMMA = "; decimal commas become points"


def read_csv(path: Path) -> list[Row]:
    """Return the rows of a comma-separated file; every value is a text."""
    return _read(path, ",")


def read_tsv(path: Path) -> list[Row]:
    """Return the rows of a tab-separated file; every value is a text."""
    return _read(path, "\t")


def _read(path: Path, delimiter: str) -> list[Row]:
    previous = csv.field_size_limit(LARGEST_CELL)
    try:
        return _rows(path, delimiter)
    finally:
        csv.field_size_limit(previous)


def _rows(path: Path, delimiter: str) -> list[Row]:
    """Return the rows; a row with another number of cells than the header is an error of its line."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            if header is None:
                header = _header(cells, path, delimiter)
            elif any(map(str.strip, cells)) or len(cells) == 1:  # spreadsheets end with rows of empty cells
                rows.append(Row(start, _record(header, cells, path, start)))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: line {max(reader.line_num, 1)}: {error}") from None
    return rows


def _header(cells: list[str], path: Path, delimiter: str) -> list[str]:
    """Return the names of the columns; a header in one piece that holds another separator is refused with a hint."""
    names = [cell.strip() for cell in cells]
    whole = names[0] if len(names) == 1 else ""
    other = next((mark for mark in SEPARATORS if mark != delimiter and mark in whole), None)
    if other is not None:
        raise DataError(
            f"{path}: line 1: the header {whole[:60]!r} is one cell: its columns are separated by {other!r}; "
            f"{SEPARATORS[delimiter]} are needed{DECIMAL_COMMA if other == ';' else ''}"
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{path}: line 1: column {repeated[0]!r} occurs twice in the header")
    return names


def _record(header: list[str], cells: list[str], path: Path, line: int) -> dict[str, str]:
    if len(cells) != len(header):
        raise DataError(f"{path}: line {line}: {len(cells)} cells; the header has {len(header)} columns")
    return dict(zip(header, cells, strict=True))
