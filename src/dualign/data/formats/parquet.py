"""The internal Parquet: preference rows as nested columns, written and read back without loss."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dualign.data.formats.internal import INTERNAL, to_values
from dualign.data.formats.table import read_preferences
from dualign.data.preferences import PreferenceRow
from dualign.errors import DataError
from dualign.runs.store import write_bytes


def _schema() -> Any:
    import pyarrow as pa

    column = pa.struct([("name", pa.string()), ("value", pa.string())])
    turn = pa.struct([("role", pa.string()), ("text", pa.string())])
    prompt = [("text", pa.string()), ("id", pa.string()), ("columns", pa.list_(column)), ("history", pa.list_(turn))]
    answer = [
        ("text", pa.string()),
        ("safe", pa.bool_()),
        ("severity", pa.int64()),
        ("categories", pa.list_(pa.string())),
        ("reward", pa.float64()),
        ("cost", pa.float64()),
        ("desirable", pa.bool_()),
    ]
    return pa.schema(
        [
            ("line", pa.int64()),
            ("prompt", pa.struct(prompt)),
            ("answers", pa.list_(pa.struct(answer))),
            ("better", pa.int64()),
            ("safer", pa.int64()),
            ("split", pa.string()),
        ]
    )


def write_parquet(rows: Iterable[PreferenceRow], path: str | Path) -> Path:
    """Return ``path`` once it holds the rows.

    Raises:
        DataError: a text has no form in UTF-8.
        StorageError: the disk refused; what was at ``path`` before is still there.
    """
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    try:
        table = pyarrow.Table.from_pylist([to_values(row) for row in rows], schema=_schema())
    except UnicodeEncodeError as error:
        raise DataError(f"{path}: a row holds half of a character (a lone surrogate): {error.reason}") from None
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return write_bytes(Path(path), sink.getvalue().to_pybytes())


def read_parquet(path: str | Path) -> tuple[PreferenceRow, ...]:
    """Return the rows that ``write_parquet`` wrote.

    Raises:
        MissingError: there is no such file.
        DataError: a damaged file, or one of other columns.
    """
    return read_preferences(path, format=INTERNAL.name).rows
