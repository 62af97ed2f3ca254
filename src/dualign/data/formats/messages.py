"""Messages in cells of texts: lists written as JSON, read before the format is recognised."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dualign.data.formats.cells import given, literal
from dualign.data.formats.faults import RowError, refusal
from dualign.data.formats.rows import Format
from dualign.data.formats.turns import ROLES, is_parts, speaker
from dualign.data.preferences import Fault
from dualign.data.sources.rows import Row

PYTHON = re.compile(r"\s*\[\s*\{\s*'(?:role|content|from|value)'\s*:.*\}\s*\]\s*", re.DOTALL)
"""A list of messages as Python prints it. It is not read: NumPy prints such lists without commas, others cut them."""


def with_messages(rows: Sequence[Row], where: str, formats: Iterable[Format]) -> list[Row]:
    """Return the rows with the messages wherever a cell holds them as JSON, in any kind of file.

    Only columns that some format reads as texts or messages are looked at.

    Raises:
        PreferenceError: cells hold messages as Python prints them; their rows are named.
    """
    columns = {name for known in formats for name in known.either}
    read = [_row(row, columns) for row in rows]
    if faults := tuple(row for row in read if isinstance(row, Fault)):
        raise refusal(where, faults)
    return [row for row in read if isinstance(row, Row)]


def _row(row: Row, columns: set[str]) -> Row | Fault:
    cells = {name: value for name, value in row.values.items() if name in columns and isinstance(value, str)}
    try:
        changed = {name: read for name, text in cells.items() if (read := cell(name, text)) is not text}
    except RowError as error:
        return Fault(error.rule, row.line, error.what)
    return Row(row.line, {**row.values, **changed}) if changed else row


def cell(name: str, text: str) -> Any:
    """Return the messages that a text holds as JSON, or the text.

    Raises:
        RowError: it holds messages as Python prints them.
    """
    if PYTHON.fullmatch(text):
        what = f"{name} holds messages as Python prints them ({text[:12]!r}); write them as JSON, or the file as JSONL"
        raise RowError("mixed plain and chat", what)
    value = literal(text) if text.lstrip().startswith(("[", "{")) else text
    return value if _messages(value) else text


def _messages(value: object) -> bool:
    """Return whether a value is a list of objects of which one is said by someone, or one message of a known speaker.

    An answer may be another JSON list or object.
    """
    if isinstance(value, Mapping):
        pairs = (value.get("role"), value.get("content")), (value.get("from"), value.get("value"))
        return any(speaker(who) in ROLES and isinstance(said, str) for who, said in pairs)
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        return False
    return any("role" in entry or {"from", "value"} <= set(entry) for entry in value)


def mixed(rows: Sequence[Row], known: Format) -> dict[int, Fault]:
    """Return the faults, by line, of rows with a text in a column whose first cell holds messages, or vice versa."""
    first: dict[str, str] = {}
    found: dict[int, Fault] = {}
    for row in rows:
        for name in known.either:
            kind = _kind(row.values.get(name))
            if kind and first.setdefault(name, kind) != kind:
                what = f"{name} is {given(row.values, name)}; {first[name]} is needed, as in the other rows"
                found.setdefault(row.line, Fault("mixed plain and chat", row.line, what))
    return found


def _kind(value: object) -> str:
    """Return what a cell holds, a text or messages; empty: neither."""
    if isinstance(value, str) or is_parts(value):
        return "a text"
    return "a list of messages" if isinstance(value, list | Mapping) and value else ""
