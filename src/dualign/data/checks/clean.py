"""The rows that a check kept, written for training; and a ledger of the others."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from dualign.data.checks.check import CheckedFile, CheckReport
from dualign.data.table_files import READERS
from dualign.errors import DataError, UsageError
from dualign.runs.store import write_bytes

SAFER_COLUMNS = ("safer_response_id", "safer")
"""Where formats with flags keep the number of the safer answer, counted from 0."""


def write_clean(report: CheckReport, out: Path) -> list[Path]:
    """Return the files written: for each file its kept rows as JSONL and, beside it, the ledger of the others.

    Columns have the names that the format knows them by, and cells of CSV the type that their texts stand for, so that
    the file is recognised without any option. A column that JSON cannot hold (an image) is null. Of one file ``out`` is
    the new file; of several it is a folder, and the new files have the names of the old ones.

    Raises:
        DataError: the check did not accept the data.
        UsageError: ``out`` is no name for them (``clean_paths``).
        StorageError: the disk refused.
    """
    names = clean_paths(report.paths, out)
    if not report.accepted:
        raise DataError("nothing is written: the data are refused as they stand")
    written = []
    for checked, path in zip(report.files, names, strict=True):
        written.append(write_bytes(path, _lines(kept_rows(checked))))
        written.append(write_bytes(ledger_path(path), _lines(ledger(checked))))
    return written


def kept_rows(checked: CheckedFile) -> Iterator[dict[str, Any]]:
    """Yield the kept rows of a file under the columns of their format; of a row that was fixed with its winner."""
    fixed = {fault.line for fault in checked.fixed}
    for row in checked.kept:
        values = {name: _jsonable(value) for name, value in row.raw.values.items()}
        winner = {name: row.safer for name in SAFER_COLUMNS if name in values and row.raw.line in fixed}
        yield {**values, **winner}


def ledger(checked: CheckedFile) -> Iterator[dict[str, Any]]:
    """Yield line, rule and reason of each row that was left out or changed, one entry for each rule, by line."""
    actions = [(fault, "dropped") for fault in checked.dropped] + [(fault, "fixed") for fault in checked.fixed]
    for fault, action in sorted(actions, key=lambda entry: entry[0].line):
        yield {"line": fault.line, "rule": fault.rule, "what": fault.what, "action": action}


def ledger_path(path: Path) -> Path:
    """Return where the ledger of a cleaned file is: beside it, as NAME.dropped.jsonl."""
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.dropped.jsonl")


def clean_paths(files: Sequence[str | Path], out: Path) -> list[Path]:
    """Return the new file of each of these files; nothing is read.

    Raises:
        UsageError: ``out`` is no name of a JSONL file, of several files no folder, is one of the files, or two files
            would get one name.
    """
    try:
        return _paths([Path(file) for file in files], out)
    except OSError as error:  # too long a name, or no right to look
        raise UsageError(f"--clean {out}: cannot be written ({error.strerror}); name another") from None


def _paths(sources: Sequence[Path], out: Path) -> list[Path]:
    names = [_one(out)] if len(sources) == 1 else _of_several(sources, out)
    written = [*names, *map(ledger_path, names)]
    if len(set(written)) < len(written):
        both = next(name for name in written if written.count(name) > 1)
        raise UsageError(f"--clean {out}: two files would both be written to {both}; clean them one by one")
    for name in written:
        if any(name.exists() and source.exists() and name.samefile(source) for source in sources):
            raise UsageError(f"--clean {out}: {name} is a file that is checked; name another")
    return names


def _one(out: Path) -> Path:
    if out.is_dir():
        raise UsageError(f"--clean {out}: is a folder; of one file name the new file, such as {out / 'kept.jsonl'}")
    if out.suffix.lower() != ".jsonl":
        raise UsageError(f"--clean {out}: the rows are written as JSONL; a name that ends with .jsonl is needed")
    return out


def _of_several(sources: Sequence[Path], out: Path) -> list[Path]:
    if out.exists() and not out.is_dir():
        raise UsageError(f"--clean {out}: is a file; of several files name a folder")
    return [out / f"{_without_ending(source.absolute().name)}.jsonl" for source in sources]


def _without_ending(name: str) -> str:
    """Return a name without the ending that named its reader; other dots belong to the name."""
    bare = name[:-3] if name.lower().endswith(".gz") else name
    known = Path(bare).suffix
    return bare.removesuffix(known) if known.lower() in READERS else bare


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return float(value) if value.is_finite() else None
    if isinstance(value, date | time):
        return value.isoformat()
    return value if value is None or isinstance(value, str | int) else None


def _lines(rows: Iterator[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
