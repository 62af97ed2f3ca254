"""JSON lines (one object a line), and JSON files that hold one list of objects."""

import json
from pathlib import Path
from typing import Any

from dualign.data.sources.rows import Row, read_text
from dualign.errors import DataError


def read_lines(path: Path) -> list[Row]:
    """Return one row for each line that is not blank.

    Lines end at newlines alone: other separators of Unicode (U+2028) may stand inside a JSON text.

    Raises:
        DataError: a line is not JSON, or not an object; the line is named.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            rows.append(Row(number, _object(_parsed(line, path, f"line {number}"), path, f"line {number}")))
    return rows


def read_list(path: Path) -> list[Row]:
    """Return one row for each object of a JSON list.

    Raises:
        DataError: the file is not JSON, or not a list of objects.
    """
    content = _parsed(read_text(path), path, "whole file")
    if not isinstance(content, list):
        raise DataError(f"{path}: is a JSON {type(content).__name__}; a list of objects is needed")
    return [Row(number, _object(value, path, f"row {number}")) for number, value in enumerate(content, start=1)]


def _parsed(text: str, path: Path, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: {where}: not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise DataError(f"{path}: {where}: nested too deeply") from None
    except ValueError as error:  # NaN, or a whole number with more digits than Python converts
        raise DataError(f"{path}: {where}: not JSON ({error})") from None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _object(value: Any, path: Path, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise DataError(f'{path}: {where}: is {_kind(value)}; an object like {{"prompt": "..."}} is needed')


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
