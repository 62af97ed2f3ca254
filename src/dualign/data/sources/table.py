"""The readers by the ending of the file's name (``.gz`` may follow), and the one function that uses them."""

from collections.abc import Callable
from pathlib import Path

from dualign.data.sources import delimited, jsonl, parquet, text
from dualign.data.sources.rows import Row, read_bytes
from dualign.errors import DataError

READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": jsonl.read_lines,
    ".ndjson": jsonl.read_lines,
    ".json": jsonl.read_list,
    ".csv": delimited.read_csv,
    ".tsv": delimited.read_tsv,
    ".parquet": parquet.read_parquet,
    ".txt": text.read_lines,
}


def ending(path: Path) -> str:
    """Return the ending that names the reader: the last one in lower case, the one before it where that is ``.gz``."""
    endings = [suffix.lower() for suffix in path.suffixes]
    return endings[-2] if len(endings) > 1 and endings[-1] == ".gz" else (endings or [""])[-1]


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
        raise DataError(f"{path}: unknown ending {ending(path)!r}; known: {', '.join(READERS)} (and .gz after them)")
    rows = reader(path)
    if not rows:
        raise DataError(f"{path}: has no rows")
    return rows
