"""Checks of single cells: a value of the type that the column must have, or a ``RowError``."""

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NoReturn

from dualign.data.formats.faults import RowError
from dualign.data.sources.rows import encodable

Values = Mapping[str, Any]
LARGEST_SEVERITY = 100  # the known scales end at 3; anything far beyond is another quantity


def given(values: Values, name: str) -> str:
    """Return a cell in a few words; containers by their kind alone, since their text can be deep and long."""
    value = values.get(name)
    if value is None:
        return "null" if name in values else "missing"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return "an object"
    return repr(value[:40] if isinstance(value, str | bytes) else value)[:60]


def refuse(rule: str, values: Values, name: str, needed: str) -> NoReturn:
    """Raise the error of one cell; a row without the column at all breaks another rule."""
    raise RowError(rule if name in values else "missing column", f"{name} is {given(values, name)}; {needed} is needed")


def text(values: Values, name: str) -> str:
    """Return a text; it may be blank, which ``rows.made`` sees to."""
    value = values.get(name)
    if isinstance(value, list):
        refuse("mixed plain and chat", values, name, "a text as in the other rows")
    if not isinstance(value, str):
        raise RowError("not a text", f"{name} is {given(values, name)}; a text is needed")
    if not encodable(value):
        raise RowError("lone surrogate", f"{name} holds half of a character (a lone surrogate)")
    return value


def flag(values: Values, name: str) -> bool:
    """Return true or false; neither 0 and 1 nor words count as such."""
    value = values.get(name)
    if not isinstance(value, bool):
        refuse("mixed label types", values, name, "true or false")
    return value


def position(values: Values, name: str, *, first: int = 0, count: int = 2) -> int:
    """Return the 0-based position of an answer whose ids in the file count from ``first``."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        refuse("mixed label types", values, name, f"a whole number from {first} to {first + count - 1}")
    if not first <= value < first + count:
        refuse("id out of range", values, name, f"a whole number from {first} to {first + count - 1}")
    return value - first


def severity(values: Values, name: str) -> int | None:
    """Return a level of harm, 0 = safe; none where the row says nothing."""
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_SEVERITY:
        refuse("mixed label types", values, name, "a level of harm, 0 (safe) or more,")
    return value


def categories(values: Values, name: str) -> frozenset[str]:
    """Return the names of a struct of flags that are true, or of a list of names; empty where nothing is said."""
    value = values.get(name)
    if value is None:
        return frozenset()
    if isinstance(value, Mapping) and all(mark is None or isinstance(mark, bool) for mark in value.values()):
        names = [str(key) for key, mark in value.items() if mark]
    elif isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        names = value
    else:
        refuse("mixed label types", values, name, "an object of true and false by category")
    if not all(encodable(category) for category in names):
        raise RowError("lone surrogate", f"{name} holds half of a character (a lone surrogate)")
    return frozenset(names)


def score(values: Values, name: str) -> float:
    """Return a finite number; a list of one counts as its number."""
    value = values.get(name)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        refuse("score not a number", values, name, "one finite number")
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond 1e308
        number = math.inf
    if not math.isfinite(number):
        refuse("score not a number", values, name, "one finite number")
    return number


def unpacked(values: Values, name: str) -> Any:
    """Return a cell, or the list or object that its text holds as JSON."""
    value = values.get(name)
    return literal(value) if isinstance(value, str) and value.lstrip().startswith(("[", "{")) else value


def literal(cell: str) -> Any:
    """Return what the text of a label stands for in a file that holds texts alone: a flag, number, object or none."""
    words = {"true": True, "false": False, "": None, "null": None, "none": None}
    bare = cell.strip().lower()
    if bare in words:
        return words[bare]
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell
