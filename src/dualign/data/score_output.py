"""Writes scored rows: JSONL, CSV or Parquet by the ending of the name."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualign.errors import DataError, UsageError

Rows = Sequence[Mapping[str, Any]]
EXCERPT = 200
"""Characters of a reason: some quote a whole cell."""


def _jsonl(rows: Rows) -> bytes:
    try:
        lines = [json.dumps(dict(row), ensure_ascii=False, allow_nan=False) for row in rows]
        return "".join(f"{line}\n" for line in lines).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"a column that was carried along has no JSON form ({error}); write Parquet") from None


def _csv(rows: Rows) -> bytes:
    names = _names(rows)
    text = io.StringIO(newline="")
    # All texts in quotes: by default a lone carriage return gets none, and readers take it for the end of a row.
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="", quoting=csv.QUOTE_NONNUMERIC)
    try:
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
        return text.getvalue().encode()
    except (csv.Error, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"a column that was carried along has no CSV form ({error}); write JSONL") from None


def _cell(value: Any) -> Any:
    """Return a value as a cell of a file of texts: lists and objects as JSON, which is how they are read back."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _parquet(rows: Rows) -> bytes:
    import pyarrow
    import pyarrow.parquet

    columns = {name: _arrow([row.get(name) for row in rows], name) for name in _names(rows)}
    buffer = io.BytesIO()
    try:
        pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    except (pyarrow.ArrowException, ValueError) as error:
        reason = str(error).splitlines()[0][:EXCERPT]
        raise DataError(f"a column that was carried along has no Parquet form ({reason}); write JSONL") from None
    return buffer.getvalue()


def _arrow(values: Sequence[Any], name: str) -> Any:
    """Return ``values`` as one column, which has one type."""
    import pyarrow

    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError, ValueError) as error:
        reason = str(error).splitlines()[0][:EXCERPT]
        raise DataError(f"column {name!r} has no Parquet form ({reason}); write JSONL") from None


def _names(rows: Rows) -> list[str]:
    return list({name: None for row in rows for name in row})


WRITERS: dict[str, Callable[[Rows], bytes]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}


def writer_for(path: Path) -> Callable[[Rows], bytes]:
    """Return what turns rows into the bytes of a file with this name, or raises ``DataError`` where it cannot.

    Raises:
        UsageError: the ending is unknown.
    """
    if path.suffix.lower() not in WRITERS:
        raise UsageError(f"{path}: unknown ending {path.suffix!r}; known: {', '.join(WRITERS)}")
    return WRITERS[path.suffix.lower()]
