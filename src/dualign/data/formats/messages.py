"""Messages in files that hold texts alone (CSV, TSV): lists written as JSON, read before the format is recognised."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dualign.data.formats.cells import literal
from dualign.data.formats.faults import RowError, refusal
from dualign.data.preferences import Fault
from dualign.data.sources.rows import Row

COLUMNS = ("prompt", "chosen", "rejected")
"""Columns that hold texts in one format and messages in another."""

PYTHON = re.compile(r"\s*\[\s*\{\s*'(?:role|content)'\s*:.*\}\s*\]\s*", re.DOTALL)
"""A list of messages as Python prints it. It is not read: NumPy prints such lists without commas, others cut them."""


def with_messages(rows: Sequence[Row], where: str) -> list[Row]:
    """Return the rows of a file of texts with a list of messages wherever a cell holds one as JSON.

    Raises:
        PreferenceError: cells hold messages as Python prints them; their rows are named.
    """
    read = [_row(row) for row in rows]
    if faults := tuple(row for row in read if isinstance(row, Fault)):
        raise refusal(where, faults)
    return [row for row in read if isinstance(row, Row)]


def _row(row: Row) -> Row | Fault:
    try:
        return Row(
            row.line, {name: _cell(name, value) if name in COLUMNS else value for name, value in row.values.items()}
        )
    except RowError as error:
        return Fault(error.rule, row.line, error.what)


def _cell(name: str, text: str) -> Any:
    if PYTHON.fullmatch(text):
        what = f"{name} holds messages as Python prints them ({text[:12]!r}); write them as JSON, or the file as JSONL"
        raise RowError("mixed plain and chat", what)
    value = literal(text) if text.lstrip().startswith("[") else text
    return value if _messages(value) else text


def _messages(value: object) -> bool:
    """Return whether a value is a list of objects of which one has a role; an answer may be another JSON list."""
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        return False
    return any("role" in entry for entry in value)
