"""Parquet files."""

import io
from pathlib import Path

from dualign.data.sources.rows import Row, read_bytes
from dualign.errors import DataError


def read_parquet(path: Path) -> list[Row]:
    """Return the rows of a Parquet file.

    Raises:
        DataError: the file is empty, damaged or no Parquet.
    """
    import pyarrow
    import pyarrow.parquet

    content = read_bytes(path)
    if not content:
        raise DataError(f"{path}: is empty; at least one row is needed")
    try:
        # Threads of Arrow that outlive the reading have aborted the interpreter at its exit now and then; this starts
        # none, which ``read_table`` does even with ``use_threads=False`` (it reads ahead).
        rows = pyarrow.parquet.ParquetFile(io.BytesIO(content), pre_buffer=False).read(use_threads=False).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # ValueError: texts, far dates
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: is not a readable Parquet file ({reason})") from None
    return [Row(number, values) for number, values in enumerate(rows, start=1)]
