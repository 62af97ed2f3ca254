"""JSON lines (one object a line), and JSON files that hold one list of objects."""

import json
from pathlib import Path
from typing import Any

from dualign.data.sources.rows import Row, read_text
from dualign.errors import DataError

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
