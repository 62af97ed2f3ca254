"""Messages in cells of texts: lists written as JSON, read before the format is recognised."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dualign.data.formats.cells import given, literal
from dualign.data.formats.rows import Format
from dualign.data.formats.turns import ROLES, is_parts, speaker
from dualign.data.preferences import Fault
from dualign.data.sources.rows import Row

TEXT, MESSAGES, PRINTED = "a text", "a list of messages", "messages as Python prints them"
PYTHON = re.compile(r"\s*\[\s*\{\s*'(?:role|content|from|value)'\s*:.*\}\s*\]\s*", re.DOTALL)
"""A list of messages as Python prints it. It is not read: NumPy prints such lists without commas, others cut them."""


def with_messages(rows: Sequence[Row], formats: Iterable[Format]) -> list[Row]:
    """Return the rows with the messages wherever a cell holds them as JSON, in any kind of file.

    Only columns that some format reads as texts or messages are looked at.
    """
    columns = {name for known in formats for name in known.either}
    return [_row(row, columns) for row in rows]


def _row(row: Row, columns: set[str]) -> Row:
    cells = {name: value for name, value in row.values.items() if name in columns and isinstance(value, str)}
    changed = {name: read for name, text in cells.items() if (read := cell(text)) is not text}
    return Row(row.line, {**row.values, **changed}) if changed else row


def cell(text: str) -> Any:
    """Return the messages that a text holds as JSON, or the text."""
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
    """Return the faults, by line, of rows with a text in a column that holds messages in most rows, or vice versa.

    Messages as Python prints them are neither.
    """
    found: dict[int, Fault] = {}
    for name in known.either:
        kinds = [_kind(row.values.get(name)) for row in rows]
        usual = Counter(kind for kind in kinds if kind in (TEXT, MESSAGES)).most_common(1)
        for row, kind in zip(rows, kinds, strict=True):
            if kind == PRINTED:
                what = (
                    f"{name} holds messages as Python prints them ({str(row.values[name])[:12]!r}); write them as JSON"
                )
                found.setdefault(row.line, Fault("not a text", row.line, what))
            elif kind and usual and kind != usual[0][0]:
                what = f"{name} is {given(row.values, name)}; {usual[0][0]} is needed, as in most rows"
                found.setdefault(row.line, Fault("mixed plain and chat", row.line, what))
    return found


def _kind(value: object) -> str:
    """Return what a cell holds: a text, messages, or messages as Python prints them; empty: none of these."""
    if isinstance(value, str) and PYTHON.fullmatch(value):
        return PRINTED
    if isinstance(value, str) or is_parts(value):
        return TEXT
    return MESSAGES if isinstance(value, list | Mapping) and value else ""
