"""One file of preferences, read as far as it can be: its rows, and why the others are not among them."""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dualign.data.formats.faults import PreferenceError
from dualign.data.formats.source import local_file
from dualign.data.formats.table import FORMATS, preference_file
from dualign.data.preferences import Fault, PreferenceFile, PreferenceRow
from dualign.data.rows import TEXTUAL
from dualign.data.sources.rows import Row, is_utf16, read_bytes
from dualign.data.sources.table import READERS, ending, read_rows
from dualign.errors import DataError

WHOLE_FILE = 0
"""The line of a fault that no single line is to blame for."""

# Columns that published data sets of these formats bring along, and those that name scorers and splits.
FAMILIAR = re.compile(
    r"split|scorer|revision|template|id|(?:prompt_|query_)id|category(?:_id)?|image"
    r"|prompt_source|response(?:_\d)?_source|(?:response_\d_)?sha256|(?:is_)?response_\d_\w+"
)
_LINE = re.compile(r"line (\d+): ")


@dataclass(frozen=True, slots=True)
class Reading:
    """What came of a file."""

    path: str
    format: str
    """Name in the table of formats; empty: none was recognised."""
    total: int
    """Rows of the file, read or not."""
    rows: tuple[tuple[Row, PreferenceRow], ...]
    """Each row as it stands in the file, and as it was read; both in the order of the file."""
    faults: tuple[Fault, ...]
    columns: Mapping[str, str]
    """Column of the file by what it was read as."""
    textual: bool
    """Whether every cell is a text, as in CSV."""


def read(path: str | Path, *, format: str | None = None, columns: Mapping[str, str] | None = None) -> Reading:
    """Return the file with its faults; rows that refuse the file are set aside, so that the others are seen too.

    Raises:
        MissingError: there is no such file, or it cannot be opened.
        UsageError: an unknown format, or a column that no format reads.
    """
    file = local_file(path)
    try:
        raws = read_rows(file)
    except DataError as error:
        return _unread(path, _whole(file, error), 0)
    textual = ending(file) in TEXTUAL
    try:
        return _made(
            raws, preference_file(raws, str(path), format=format, columns=columns, textual=textual), (), textual
        )
    except PreferenceError as error:
        faults, name = error.faults, error.format
    except DataError as error:  # a column that --columns names and the file lacks
        return _unread(path, Fault("missing column", WHOLE_FILE, _words(error, path)), len(raws))
    blamed = {fault.line for fault in faults}
    others = [raw for raw in raws if raw.line not in blamed]
    whole_file = Reading(str(path), name, len(raws), (), faults, {}, textual)
    if not others:
        return whole_file
    try:
        known = preference_file(others, str(path), format=format, columns=columns, textual=textual)
    except DataError:  # what is wrong with the others is wrong with the file, and has been said
        return whole_file
    return _made(raws, known, faults, textual)


def _made(raws: Sequence[Row], file: PreferenceFile, errors: tuple[Fault, ...], textual: bool) -> Reading:
    faults = (*errors, *file.faults)
    out = {fault.line for fault in faults}
    standing = [raw for raw in raws if raw.line not in out]
    return Reading(
        path=file.path,
        format=file.format,
        total=len(raws),
        rows=tuple(zip(standing, file.rows, strict=True)),
        faults=(*faults, *_extra_columns(raws, file)),
        columns=file.columns,
        textual=textual,
    )


def _extra_columns(raws: Sequence[Row], file: PreferenceFile) -> list[Fault]:
    known = FORMATS[file.format]
    read_from = {name for column in file.columns.values() for name in (column, column.split(".")[0])}
    first: dict[str, int] = {}
    for raw in raws:
        for name in raw.values:
            first.setdefault(name, raw.line)
    extra = [name for name in first if name not in read_from and not known.reads(name) and not FAMILIAR.fullmatch(name)]
    if not extra:
        return []
    names = ", ".join(map(repr, extra[:8])) + (", ..." if len(extra) > 8 else "")
    return [Fault("extra columns", first[extra[0]], f"{known.name} has no {names}")]


def _unread(path: str | Path, fault: Fault, total: int) -> Reading:
    return Reading(str(path), "", total, (), (fault,), {}, textual=False)


def _whole(file: Path, error: DataError) -> Fault:
    """Return the fault of a file that is no table of rows, with the line where that shows."""
    if _is_empty(file):
        return Fault("empty data set", WHOLE_FILE, "the file has no rows")
    what = _words(error, file)
    named = _LINE.match(what)
    return Fault("unreadable file", int(named[1]) if named else _first_line(file), what[named.end() if named else 0 :])


def _first_line(file: Path) -> int:
    """Return the line from which a file cannot be read, whose error names none."""
    try:
        return 1 if is_utf16(read_bytes(file)) else WHOLE_FILE
    except DataError:  # only the stream itself can be damaged here; one that is sound may hold a bad text
        return _lines_before_damage(file.read_bytes()) + 1


def _is_empty(file: Path) -> bool:
    """Return whether nothing is in the file, or a header, or a list without entries.

    Raises:
        MissingError: there is no such file, or it cannot be opened.
    """
    reader = READERS.get(ending(file))
    try:
        return not read_bytes(file).strip() or (reader is not None and not reader(file))
    except DataError:
        return False


def _lines_before_damage(content: bytes) -> int:
    """Return how many whole lines of a damaged gzip stream can be unpacked."""
    stream, lines = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16), 0
    try:
        for start in range(0, len(content), 1 << 16):
            lines += stream.decompress(content[start : start + (1 << 16)]).count(b"\n")
    except zlib.error:  # what came before is counted
        pass
    return lines


def _words(error: DataError, path: str | Path) -> str:
    """Return what an error says without the path that it opens with."""
    return str(error).removeprefix(f"{path}: ")
