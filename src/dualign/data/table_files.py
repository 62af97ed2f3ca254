"""Files of rows: their bytes to rows, each with its line, by the ending of the name; and rows to bytes."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dualign.errors import DataError, MissingError, UsageError
from dualign.strict import parse_json

UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
GZIP_MARK = b"\x1f\x8b"
EMPTY = "empty data set"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table and where it stands."""

    line: int
    """1-based line of the file; for Parquet, JSON lists and data in memory the 1-based number of the row."""
    values: Mapping[str, Any]


class TableError(DataError):
    """A file that cannot be taken apart into rows, or holds none."""

    def __init__(self, name: object, what: str, line: int = 0, *, rule: str = "unreadable file") -> None:
        super().__init__(f"{name}: {f'line {line}: ' if line else ''}{what}")
        self.name = str(name)
        self.what = what
        self.line = line
        """The line from which it cannot be read; 0: no line is to blame."""
        self.rule = rule


def read_bytes(path: Path) -> bytes:
    """Return the content of ``path``, unpacked when it is gzip.

    Raises:
        MissingError: there is no such file, it is a folder, or it may not be read.
        DataError: it is empty, or the gzip stream is damaged or cut short.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise MissingError(f"{path}: is a folder; name a file in it") from None
    except OSError as error:
        raise MissingError(f"{path}: cannot be read ({error.strerror or error})") from error
    if content.startswith(GZIP_MARK):
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            what = f"the gzip file is damaged or cut short ({error}); copy it again"
            raise TableError(path, what, _lines_before_damage(content) + 1) from error
    if not content.removeprefix(UTF8_MARK).strip():
        raise TableError(path, "is empty; at least one row is needed", rule=EMPTY)
    return content


def _lines_before_damage(content: bytes) -> int:
    """Return how many whole lines of a damaged gzip stream can be unpacked."""
    stream, lines = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16), 0
    try:
        for start in range(0, len(content), 1 << 16):
            lines += stream.decompress(content[start : start + (1 << 16)]).count(b"\n")
    except zlib.error:  # what came before is counted
        pass
    return lines


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without its byte-order mark.

    Raises:
        MissingError: as ``read_bytes``.
        DataError: the file is empty, UTF-16, or not UTF-8; the line of the first wrong byte is named.
    """
    content = read_bytes(path)
    if content.startswith(UTF16_MARKS) or b"\0" in content[:4]:
        raise TableError(path, "is UTF-16; save it as UTF-8 (in a spreadsheet: CSV UTF-8)", 1)
    content = content.removeprefix(UTF8_MARK)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise TableError(path, what, line) from None


COLUMN = "prompt"
"""What a text by itself is."""
INSPECT = {"eval", "status", "version"}
"""Keys that a log of Inspect has beside its samples."""
LINES = "a file of one object a line is named .jsonl"
BY_COLUMN = "is an object of columns; rows are needed (pandas: orient='records', lines=True)"


def _text_lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines that are not blank, with their numbers.

    Lines end at newlines alone: other separators of Unicode (U+2028) may stand inside a JSON text.
    """
    return [(number, line) for number, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]


def read_text_lines(path: Path) -> list[Row]:
    """Return one row for each line that is not blank, with the line as its prompt."""
    return [Row(number, {COLUMN: line.strip()}) for number, line in _text_lines(path)]


def read_lines(path: Path) -> list[Row]:
    """Return one row for each line that is not blank.

    Raises:
        DataError: a line is not JSON, or not an object, or has a key twice; the line is named.
    """
    return [Row(number, _object(_parsed(line, path, number), path, number)) for number, line in _text_lines(path)]


def read_list(path: Path) -> list[Row]:
    """Return one row for each object of a JSON list; of an Inspect log, one for each of its samples.

    Raises:
        DataError: the file is not JSON, or not a list of objects, or an object has a key twice.
    """
    content = _parsed(read_text(path), path, 0)
    if isinstance(content, dict) and isinstance(content.get("samples"), list) and INSPECT & content.keys():
        content = content["samples"]
    if isinstance(content, dict) and (name := _rows_under(content)):
        raise TableError(path, f"is an object with the rows under {name!r}; write that list alone")
    if isinstance(content, dict) and content and all(isinstance(column, dict | list) for column in content.values()):
        raise TableError(path, BY_COLUMN)
    if not isinstance(content, list):
        raise TableError(path, f"is {_kind(content)}; a list of objects is needed ({LINES})")
    return numbered(content, path)


def _rows_under(content: dict[str, Any]) -> str:
    """Return the name of the one list in an object, where it is a list of objects; empty: there is no such list."""
    lists = {name: value for name, value in content.items() if isinstance(value, list)}
    return next((name for name, value in lists.items() if len(lists) == 1 and value and isinstance(value[0], dict)), "")


def _parsed(text: str, path: Path, line: int) -> Any:
    """Return the value of a JSON text; NaN and Infinity, which Python writes, are numbers that no score may be.

    ``line`` is where the text stands; 0: it is the whole file.
    """
    try:
        return parse_json(text, constants=True)
    except json.JSONDecodeError as error:
        another = f"; {LINES}" if error.msg == "Extra data" and error.lineno > 1 else ""
        what = f"not JSON ({error.msg} at column {error.colno}){another}"
        raise TableError(path, what, max(line, 1) + error.lineno - 1) from None
    except ValueError as error:  # a key twice, nesting or digits without end
        raise TableError(path, f"{'' if line else 'whole file: '}not JSON ({error})", line) from None


def numbered(values: Iterable[Any], path: object) -> list[Row]:
    """Return a row for each object, by its number."""
    return [Row(number, _object(value, path, number, unit="row")) for number, value in enumerate(values, start=1)]


def _object(value: Any, path: object, number: int, *, unit: str = "line") -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    what = f'is {_kind(value)}; an object like {{"prompt": "..."}} is needed'
    raise TableError(path, what, number) if unit == "line" else TableError(path, f"{unit} {number}: {what}")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"of type {type(value).__name__}")


LARGEST_CELL = 2**26  # characters; the default of 131,072 refuses long transcripts
SEPARATORS = {",": "commas (.csv)", "\t": "tabs (.tsv)", ";": "semicolons"}
"""What separates cells, in words; no file of ours has semicolons, many spreadsheets write them."""


def read_separated(path: Path, *, delimiter: str) -> list[Row]:
    """Return the rows of a file of cells, every value a text.

    Raises:
        DataError: a row has another number of cells than the header, or two columns have one name.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    header: list[str] | None = None
    start = 1
    previous = csv.field_size_limit(LARGEST_CELL)
    try:
        for cells in reader:
            if header is None:
                header = _header(cells, path, delimiter)
            elif any(map(str.strip, cells)) or len(cells) == 1:  # spreadsheets end with rows of empty cells
                if len(cells) != len(header):
                    raise TableError(path, f"{len(cells)} cells; the header has {len(header)} columns", start)
                rows.append(Row(start, dict(zip(header, cells, strict=True))))
            start = reader.line_num + 1
    except csv.Error as error:
        raise TableError(path, str(error), max(reader.line_num, 1)) from None
    finally:
        csv.field_size_limit(previous)
    return rows


def _header(cells: list[str], path: Path, delimiter: str) -> list[str]:
    """Return the names of the columns; a header in one piece that holds another separator is refused with a hint."""
    names = [cell.strip() for cell in cells]
    whole = names[0] if len(names) == 1 else ""
    other = next((mark for mark in SEPARATORS if mark != delimiter and mark in whole), None)
    if other is not None:
        needed = f"{SEPARATORS[delimiter]} are needed{'; decimal commas become points' if other == ';' else ''}"
        what = f"the header {whole[:60]!r} is one cell: its columns are separated by {other!r}; {needed}"
        raise TableError(path, what, 1)
    if repeated := _twice(names):
        raise TableError(path, f"column {min(repeated)!r} occurs twice in the header", 1)
    return names


def _twice(names: Sequence[Any]) -> list[Any]:
    return [name for number, name in enumerate(names) if name in names[:number]]


def read_parquet(path: Path) -> list[Row]:
    """Return the rows of a Parquet file.

    Raises:
        DataError: the file is empty, damaged or no Parquet, or has two columns of one name.
    """
    import pyarrow
    import pyarrow.parquet

    content = read_bytes(path)
    try:
        # Threads of Arrow that outlive the reading have aborted the interpreter at its exit now and then; this starts
        # none, which ``read_table`` does even with ``use_threads=False`` (it reads ahead).
        table = pyarrow.parquet.ParquetFile(io.BytesIO(content), pre_buffer=False).read(use_threads=False)
        check_columns(table.column_names, path)
        return numbered(table.to_pylist(), path)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # ValueError: texts, far dates
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TableError(path, f"is not a readable Parquet file ({reason})") from None


def check_columns(names: Sequence[Any], path: object) -> None:
    """Check that no two columns have one name: a row is a mapping, in which the last of them would stand for both."""
    if repeated := _twice(names):
        raise TableError(path, f"column {repeated[0]!r} occurs twice; keep one, or give it another name")


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": read_lines,
    ".ndjson": read_lines,
    ".json": read_list,
    ".csv": partial(read_separated, delimiter=","),
    ".tsv": partial(read_separated, delimiter="\t"),
    ".parquet": read_parquet,
    ".txt": read_text_lines,
}
TEXTUAL = {".csv", ".tsv"}
"""Endings of files that hold texts alone."""
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


PINNED = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)@(?P<revision>[\w.-]+)(?:/(?P<file>.+))?")
UNPINNED = re.compile(r"[\w-][\w.-]*/[\w-][\w-]*")


def local_file(given: str | Path) -> Path:
    """Return the file that ``given`` stands for.

    A folder stands for the one data file in it. ``org/name@revision`` (``/file`` may follow) stands for a data set of
    the Hub that is in the local cache already; nothing is ever downloaded here.

    Raises:
        MissingError: there is no such file, a folder holds none or several, or the cache has no such data set.
    """
    path = Path(given)
    try:
        folder, there = path.is_dir(), path.exists()
    except OSError:  # no right to look, or no possible name: the reader says which
        return path
    if folder:
        return _only_file(path, str(given))
    pinned = PINNED.fullmatch(str(given))
    if there or (pinned is None and not UNPINNED.fullmatch(str(given))):
        return path
    if pinned is None:
        needed = f"a data set of the Hub needs its revision ({given}@COMMIT), or name a local path"
        raise MissingError(f"{given}: no such file; {needed}")
    snapshot = _cached(pinned["name"], pinned["revision"], str(given))
    return snapshot / pinned["file"] if pinned["file"] else _only_file(snapshot, str(given))


def _cached(name: str, revision: str, given: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
    except (OSError, ValueError):  # not in the cache, or no valid name
        what = f"the local cache has no data set {name!r} at {revision!r}; download it and name a local path"
        raise MissingError(f"{given}: {what}") from None


def _only_file(folder: Path, given: str) -> Path:
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    known = [name for name in names if ending(name) in READERS and ending(name) != ".txt"]
    files = [name for name in known if not any(part.startswith(".") for part in name.parts)]
    if len(files) == 1:
        return folder / files[0]
    if not files:
        raise MissingError(f"{given}: the folder holds no data file; known endings: {', '.join(READERS)}")
    some = ", ".join(map(str, files[:5])) + (", ..." if len(files) > 5 else "")
    raise MissingError(f"{given}: the folder holds {len(files)} data files; name one: {some}")


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

    columns = {}
    for name in _names(rows):
        try:
            columns[name] = pyarrow.array([row.get(name) for row in rows])  # which has one type
        except (pyarrow.ArrowException, OverflowError, ValueError) as error:
            reason = str(error).splitlines()[0][:EXCERPT]
            raise DataError(f"column {name!r} has no Parquet form ({reason}); write JSONL") from None
    buffer = io.BytesIO()
    try:
        pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    except (pyarrow.ArrowException, ValueError) as error:
        reason = str(error).splitlines()[0][:EXCERPT]
        raise DataError(f"a column that was carried along has no Parquet form ({reason}); write JSONL") from None
    return buffer.getvalue()


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
