"""The readers by the ending of the file's name (``.gz`` may follow), and the one function that uses them."""

from collections.abc import Callable
from pathlib import Path

from dualign.data.sources import delimited, jsonl, parquet, text
from dualign.data.sources.rows import Row
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


def read_rows(path: str | Path) -> list[Row]:
    """Return the rows of a file, read by the ending of its name.

    Raises:
        MissingError: there is no such file, or it cannot be read.
        DataError: the ending is unknown, a line is broken (its number is named), or there are no rows.
    """
    path = Path(path)
    endings = [ending.lower() for ending in path.suffixes]
    ending = endings[-2] if len(endings) > 1 and endings[-1] == ".gz" else (endings or [""])[-1]
    if ending not in READERS:
        raise DataError(f"{path}: unknown ending {ending!r}; known: {', '.join(READERS)} (and .gz after them)")
    rows = READERS[ending](path)
    if not rows:
        raise DataError(f"{path}: has no rows")
    return rows
