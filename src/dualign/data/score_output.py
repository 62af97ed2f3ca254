"""Writes scored rows: JSONL, CSV or Parquet by the ending of the name."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualign.errors import DataError, UsageError

Rows = Sequence[Mapping[str, Any]]


def _jsonl(rows: Rows) -> bytes:
    try:
        lines = [json.dumps(dict(row), ensure_ascii=False, allow_nan=False) for row in rows]
    except (TypeError, ValueError) as error:
        raise DataError(f"a column that was carried along has no JSON form ({error}); write Parquet") from None
    return "".join(f"{line}\n" for line in lines).encode()


def _csv(rows: Rows) -> bytes:
    names = _names(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(rows: Rows) -> bytes:
    import pyarrow
    import pyarrow.parquet

    columns = {name: [row.get(name) for row in rows] for name in _names(rows)}
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def _names(rows: Rows) -> list[str]:
    return list({name: None for row in rows for name in row})


WRITERS: dict[str, Callable[[Rows], bytes]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}


def writer_for(path: Path) -> Callable[[Rows], bytes]:
    """Return what turns rows into the bytes of a file with this name.

    Raises:
        UsageError: the ending is unknown.
    """
    if path.suffix.lower() not in WRITERS:
        raise UsageError(f"{path}: unknown ending {path.suffix!r}; known: {', '.join(WRITERS)}")
    return WRITERS[path.suffix.lower()]
