"""Cells of any table: what one may hold, and the error that says what is wrong with it."""

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NoReturn

from dualign.strict import parse_json

Values = Mapping[str, Any]
HALF = "half of a character (a lone surrogate)"
NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
LARGEST = 1e100
"""Largest size of a number in a table: squares and sums of such numbers are still finite."""
LARGEST_SEVERITY = 100  # the known scales end at 3; anything far beyond is another quantity
WORDS = {"true": True, "false": False, "": None, "null": None, "none": None}
"""What labels say in a file that holds texts alone, in lower case."""


class RowError(Exception):
    """One row breaks a rule of the reader, which adds the file and the line."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(what)
        self.rule = rule
        self.what = what


def at(values: Values, path: str) -> Any:
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


def encodable(text: str) -> bool:
    """Return whether ``text`` is free of lone surrogates, which no file and no tokenizer can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def decimal(text: str) -> float:
    """Return the number that a text is in plain ASCII decimals (``-1.5e3``); NaN for every other text.

    Python's own reading takes digits of every script, underscores, ``inf`` and ``nan`` as well.
    """
    bare = text.strip(" \t")
    return float(bare) if NUMBER.fullmatch(bare) else math.nan


def column_text(value: Any) -> str | None:
    """Return a scalar as the text that ``where`` compares (``true`` and ``false`` as in YAML), or none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else None


def literal(cell: str) -> Any:
    """Return what the text of a label stands for in a file that holds texts alone: a flag, number, object or none."""
    bare = cell.strip().lower()
    if bare in WORDS:
        return WORDS[bare]
    try:
        return parse_json(cell, constants=True)
    except ValueError:
        return cell


def unpacked(values: Values, name: str) -> Any:
    """Return a cell, or the list or object that its text holds as JSON."""
    value = values.get(name)
    return literal(value) if isinstance(value, str) and value.lstrip().startswith(("[", "{")) else value


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
    """Return a text; it may be blank, which ``preferences.made`` sees to."""
    value = values.get(name)
    if isinstance(value, list):
        refuse("mixed plain and chat", values, name, "a text as in the other rows")
    if not isinstance(value, str):
        raise RowError("not a text", f"{name} is {given(values, name)}; a text is needed")
    return whole_text(value, name)


def whole_text(said: str, where: str) -> str:
    """Return a text without halves of characters."""
    if not encodable(said):
        raise RowError("lone surrogate", f"{where} holds {HALF}")
    return said


def flag(values: Values, name: str) -> bool:
    """Return true or false; neither 0 and 1 nor words count as such."""
    value = values.get(name)
    if not isinstance(value, bool):
        refuse("mixed label types", values, name, "true or false")
    return value


def position(values: Values, name: str, *, first: int = 0, count: int = 2) -> int:
    """Return the 0-based position of an answer whose ids in the file count from ``first``."""
    value, needed = values.get(name), f"a whole number from {first} to {first + count - 1}"
    if isinstance(value, bool) or not isinstance(value, int):
        refuse("mixed label types", values, name, needed)
    if not first <= value < first + count:
        refuse("id out of range", values, name, needed)
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
        value = [str(key) for key, mark in value.items() if mark]
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        refuse("mixed label types", values, name, "an object of true and false by category")
    return frozenset(whole_text(category, name) for category in value)


def score(values: Values, name: str) -> float:
    """Return a finite number; a list of one counts as its number."""
    value = values.get(name)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    number = _number(value)
    if not math.isfinite(number):
        refuse("score not a number", values, name, "one finite number")
    return number


def _number(value: object) -> float:
    """Return a number of any kind; NaN: it is none, or a whole number beyond 1e308."""
    try:
        return float(value) if isinstance(value, int | float | Decimal) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def name_cell(values: Values, column: str) -> str:
    """Return a text that is not empty; a whole number counts as one, since tables turn names such as 3 into 3.0."""
    value = values.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        expect(column, value, "a text that is not empty")
    if not encodable(str(value)):
        expect(column, value, f"a text (this one holds {HALF})")
    return str(value)


def number_cell(values: Values, column: str, *, textual: bool, positive: str = "") -> float:
    """Return a finite number; a score that is missing is never filled in.

    Args:
        values: the row.
        column: its name.
        textual: whether the file holds texts alone, of which one may be a number.
        positive: what to do about a number that is not above 0; empty: it may be any.
    """
    value = values.get(column)
    number = _number(value) if not textual else decimal(value) if isinstance(value, str) else math.nan
    if not math.isfinite(number):
        expect(column, value, _wanted(value, textual=textual))
    if abs(number) > LARGEST:
        expect(column, value, f"a number of at most {LARGEST:g} in size")
    if positive and not number > 0:
        expect(column, number, f"a number above 0 ({positive})")
    return number


def _wanted(value: object, *, textual: bool) -> str:
    """Return what a cell without a finite number should hold, with a hint where the mend is known."""
    if isinstance(value, bool):
        return "a finite number (1 for true, 0 for false)"
    if not isinstance(value, str) or not value.strip():
        return "a finite number"
    if COMMA.fullmatch(value.strip()):
        return f"a finite number with a decimal point ({value.strip().replace(',', '.')})"
    if math.isfinite(decimal(value)) and not textual:
        return "a finite number, without quotes"
    return "a finite number in plain decimals, such as -1.5 or 2e-3"


def expect(column: str, value: object, expected: str) -> NoReturn:
    """Raise the error of one cell of a table of numbers."""
    held = "nothing" if value is None or value == "" else repr(value)[:60]
    raise RowError("score not a number", f"column {column!r} holds {held}; expected {expected}")
