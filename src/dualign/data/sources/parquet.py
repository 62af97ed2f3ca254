"""Parquet files."""

import io
from pathlib import Path

from dualign.data.sources.rows import Row, read_bytes
from dualign.errors import DataError


def read_parquet(path: Path) -> list[Row]:
    """Return the rows of a Parquet file.

    Raises:
        DataError: the file is empty, damaged or no Parquet, or has two columns of one name.
    """
    import pyarrow
    import pyarrow.parquet

    content = read_bytes(path)
    if not content:
        raise DataError(f"{path}: is empty; at least one row is needed")
    try:
        # Threads of Arrow that outlive the reading have aborted the interpreter at its exit now and then; this starts
        # none, which ``read_table`` does even with ``use_threads=False`` (it reads ahead).
        table = pyarrow.parquet.ParquetFile(io.BytesIO(content), pre_buffer=False).read(use_threads=False)
        # A row is a mapping, in which the last of two columns of one name would stand for both.
        repeated = next((name for name in table.column_names if table.column_names.count(name) > 1), None)
        rows = table.to_pylist() if repeated is None else []
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # ValueError: texts, far dates
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: is not a readable Parquet file ({reason})") from None
    if repeated is not None:
        raise DataError(f"{path}: column {repeated!r} occurs twice; keep one, or give it another name")
    return [Row(number, values) for number, values in enumerate(rows, start=1)]
