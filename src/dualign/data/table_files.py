"""What every reader of a file returns, and the bytes that all of them start from."""

import csv
import fnmatch
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.errors import DataError, MissingError, UsageError, nearest

UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
GZIP_MARK = b"\x1f\x8b"
HALF = "half of a character (a lone surrogate)"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file and where it stands."""

    line: int
    """1-based line of the file; for Parquet and JSON lists the 1-based number of the row."""
    values: Mapping[str, Any]


def at(values: Mapping[str, Any], path: str) -> Any:
    """Return the value of a column, or where ``path`` leads inside one (``output.completion``, ``resps.0.0``), or none.

    A column of that very name comes before a path.
    """
    if path in values:
        return values[path]
    current: Any = values
    for step in path.split("."):
        if isinstance(current, Mapping):
            current = current.get(step)
        elif isinstance(current, list) and step.isdecimal() and int(step) < len(current):
            current = current[int(step)]
        else:
            return None
    return current


def read_bytes(path: Path) -> bytes:
    """Return the content of ``path``, unpacked when it is gzip.

    Raises:
        MissingError: there is no such file, it is a folder, or it may not be read.
        DataError: the gzip stream is damaged or cut short.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise MissingError(f"{path}: is a folder; name a file in it") from None
    except OSError as error:
        raise MissingError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not content.startswith(GZIP_MARK):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the gzip file is damaged or cut short ({error}); copy it again") from error


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without its byte-order mark.

    Raises:
        MissingError: as ``read_bytes``.
        DataError: the file is empty, UTF-16, or not UTF-8; the line of the first wrong byte is named.
    """
    content = read_bytes(path)
    if is_utf16(content):
        raise DataError(f"{path}: is UTF-16; save it as UTF-8 (in a spreadsheet: CSV UTF-8)")
    content = content.removeprefix(UTF8_MARK)
    if not content.strip():
        raise DataError(f"{path}: is empty; at least one row is needed")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: line {line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def is_utf16(content: bytes) -> bool:
    """Return whether bytes are a text in UTF-16 or UTF-32, with a byte-order mark or by their zero bytes."""
    return content.startswith(UTF16_MARKS) or b"\0" in content[:4]


def encodable(text: str) -> bool:
    """Return whether ``text`` is free of lone surrogates, which no file and no tokenizer can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


COLUMN = "prompt"


def read_text_lines(path: Path) -> list[Row]:
    """Return one row for each line that is not blank, with the line as its prompt."""
    return [
        Row(number, {COLUMN: line.strip()})
        for number, line in enumerate(read_text(path).split("\n"), start=1)
        if line.strip()
    ]


INSPECT = {"eval", "status", "version"}
"""Keys that a log of Inspect has beside its samples."""
LINES = "a file of one object a line is named .jsonl"


def read_lines(path: Path) -> list[Row]:
    """Return one row for each line that is not blank.

    Lines end at newlines alone: other separators of Unicode (U+2028) may stand inside a JSON text.

    Raises:
        DataError: a line is not JSON, or not an object, or has a key twice; the line is named.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            rows.append(Row(number, _object(_parsed(line, path, f"line {number}", number), path, f"line {number}")))
    return rows


def read_list(path: Path) -> list[Row]:
    """Return one row for each object of a JSON list; of an Inspect log, one for each of its samples.

    Raises:
        DataError: the file is not JSON, or not a list of objects, or an object has a key twice.
    """
    content = _parsed(read_text(path), path, "whole file", 1)
    if isinstance(content, dict) and isinstance(content.get("samples"), list) and INSPECT & content.keys():
        content = content["samples"]
    if isinstance(content, dict) and (name := _rows_under(content)):
        raise DataError(f"{path}: is an object with the rows under {name!r}; write that list alone")
    if isinstance(content, dict) and content and all(isinstance(column, dict | list) for column in content.values()):
        raise DataError(f"{path}: is an object of columns; rows are needed (pandas: orient='records', lines=True)")
    if not isinstance(content, list):
        raise DataError(f"{path}: is {_kind(content)}; a list of objects is needed ({LINES})")
    return [Row(number, _object(value, path, f"row {number}")) for number, value in enumerate(content, start=1)]


def _rows_under(content: dict[str, Any]) -> str:
    """Return the name of the one list in an object, where it is a list of objects; empty: there is no such list."""
    lists = {name: value for name, value in content.items() if isinstance(value, list)}
    return next((name for name, value in lists.items() if len(lists) == 1 and value and isinstance(value[0], dict)), "")


def _parsed(text: str, path: Path, where: str, first_line: int) -> Any:
    """Return the value of a JSON text; NaN and Infinity, which Python writes, are numbers that no score may be."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        another = f"; {LINES}" if error.msg == "Extra data" and error.lineno > 1 else ""
        place = f"line {first_line + error.lineno - 1}"
        raise DataError(f"{path}: {place}: not JSON ({error.msg} at column {error.colno}){another}") from None
    except RecursionError:
        raise DataError(f"{path}: {where}: nested too deeply") from None
    except ValueError as error:  # a key twice, or a whole number with more digits than Python converts
        raise DataError(f"{path}: {where}: not JSON ({error})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice in one object")
    return values


def _object(value: Any, path: Path, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise DataError(f'{path}: {where}: is {_kind(value)}; an object like {{"prompt": "..."}} is needed')


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


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


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": read_lines,
    ".ndjson": read_lines,
    ".json": read_list,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".txt": read_text_lines,
}

MENDS = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as CSV UTF-8"),
    ".eval": "write it as JSON (inspect log convert --to json)",
    **dict.fromkeys((".zip", ".zst", ".bz2", ".xz", ".tar", ".tgz"), "unpack it"),
    **dict.fromkeys((".arrow", ".feather"), "write it as Parquet"),
}
"""What to do with files of other endings that people bring."""


def ending(path: Path) -> str:
    """Return the ending that names the reader: the last one in lower case, the one before it where that is ``.gz``."""
    endings = [suffix.lower() for suffix in path.suffixes]
    return endings[-2] if len(endings) > 1 and endings[-1] == ".gz" else (endings or [""])[-1]


def renamed(rows: Sequence[Row], where: str, columns: Mapping[str, str]) -> list[Row]:
    """Return the rows with columns under the names that they are read as; a column that had such a name gives way.

    ``columns``: column of the file by that name, ``{"prompt": "question"}``; a path reaches into objects and lists
    (``output.completion``, ``resps.0.0``), and what it leads to becomes a column beside the others.

    Raises:
        UsageError: one column is to be read as two.
        DataError: no row has such a column.
    """
    if len(set(columns.values())) < len(columns):
        raise UsageError("columns: one column of the file is to be read as two")
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    for read, name in columns.items():
        if name not in names and all(at(row.values, name) is None for row in rows):
            raise DataError(f"{where}: no column {name!r} to read as {read!r}; {nearest(name, names)}")
    return [Row(row.line, _renamed(row.values, columns)) for row in rows] if columns else list(rows)


def _renamed(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    old = {*columns, *columns.values()}
    found = {name: at(values, column) for name, column in columns.items()}
    read = {name: value for name, value in found.items() if value is not None or columns[name] in values}
    return {**read, **{name: value for name, value in values.items() if name not in old}}


def readable(names: Iterable[str], columns: Mapping[str, str]) -> None:
    """Check that each name that a column is to be read as is one of ``names``; ``cost_*`` stands for all that so begin.

    Raises:
        UsageError: another name.
    """
    known = list(dict.fromkeys(names))
    for read in columns:
        if not any(fnmatch.fnmatchcase(read, pattern) for pattern in known):
            raise UsageError(f"columns: nothing is read as {read!r}; {nearest(read, known)}")


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
        hint = f"; {MENDS[ending(path)]}" if ending(path) in MENDS else ""
        raise DataError(
            f"{path}: unknown ending {ending(path)!r}; known: {', '.join(READERS)} (and .gz after them){hint}"
        )
    rows = reader(path)
    if not rows:
        raise DataError(f"{path}: has no rows")
    return rows
