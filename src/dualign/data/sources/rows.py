"""What every reader of a file returns, and the bytes that all of them start from."""

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.errors import DataError, MissingError

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
