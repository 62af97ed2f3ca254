"""Tables of any origin -> numbered rows, and the checks of single cells that every table shares."""

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

from dualign.data import table_files
from dualign.data.conversations import as_prompt, asked, holds_messages, instructed, mapping_hint
from dualign.data.formats.source import SYSTEM, RowError
from dualign.data.formats.turns import with_system
from dualign.data.table_files import HALF, encodable
from dualign.errors import DataError, MissingError
from dualign.records import Prompt

Row = Mapping[str, Any]
TEXTUAL = {".csv", ".tsv"}
"""Endings of files that hold texts alone, so that a text there may be a number."""
LARGEST = 1e100
"""Largest size of a number in a table: squares and sums of such numbers are still finite."""
NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")


def decimal(text: str) -> float:
    """Return the number that a text is in plain ASCII decimals (``-1.5e3``); NaN for every other text.

    Python's own reading takes digits of every script, underscores, ``inf`` and ``nan`` as well.
    """
    bare = text.strip(" \t")
    return float(bare) if NUMBER.fullmatch(bare) else math.nan


def read_rows(path: Path, *, what: str, columns: Mapping[str, str] | None = None) -> list[tuple[int, Row]]:
    """Return 1-based line (or row) numbers and rows of a table; ``what`` says in messages what it should hold.

    ``columns``: column of the file by the name that it is read as (``sources.table.renamed``).

    Raises:
        MissingError: the file is absent or cannot be read.
        DataError: an unknown ending, no rows, a line that is not a row, or a name that no file could hold.
    """
    try:
        rows = table_files.renamed(table_files.read_rows(path), str(path), columns or {})
    except (DataError, MissingError) as error:
        raise type(error)(f"{error}; expected {what}") from error
    for name, line in {name: row.line for row in reversed(rows) for name in row.values}.items():
        if not encodable(name):
            raise DataError(f"{path}, line {line}: the name {name!r} of a column holds {HALF}")
    return [(row.line, row.values) for row in rows]


def text_cell(path: Path, line: int, row: Row, column: str) -> str:
    """Return a text that is not empty; a whole number counts as one, since tables turn names such as 3 into 3.0.

    Raises:
        DataError: anything else.
    """
    value = row.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        refuse(path, line, column, value, "a text that is not empty")
    if not encodable(str(value)):
        refuse(path, line, column, value, f"a text (this one holds {HALF})")
    return str(value)


PROMPTS = ("prompt", "messages", "conversations", "instruction", "prompt_id")
"""Columns that say which prompt a row is about; the first that says anything is read."""
WITH = ("input", "history", *SYSTEM)
"""Columns that go with a prompt."""


def prompt_cell(path: Path, line: int, row: Row) -> Prompt:
    """Return the prompt of a row: a text, messages, a conversation without the answer at its end, or an id alone.

    As where answers are scored, an instruction goes with its input, and a column of a system turn with every prompt.

    Raises:
        DataError: the row has none of them, or one that is no prompt.
    """
    there = [name for name in PROMPTS if name in row]
    column = next((name for name in there if row[name] is not None), there[0] if there else None)
    if column is None:
        raise DataError(f"{path}, line {line}: no column 'prompt'; {mapping_hint(row, ('prompt',))}")
    if column == "prompt_id":
        text = text_cell(path, line, row, column)
        return Prompt(text, id=text)
    value = instructed(row) if column == "instruction" else row[column]
    try:
        if holds_messages(value):
            said = as_prompt(value if column == "prompt" else asked(value), column)
        else:
            said = Prompt(text_cell(path, line, {**row, column: value}, column))
        return with_system(said, row)
    except RowError as error:
        raise DataError(f"{path}, line {line}: column {column!r}: {error.what}") from None


def spelt_alike(prompts: Sequence[Prompt]) -> list[str]:
    """Return a sentence with the count of prompts that differ from another one in spelling alone, if there are any."""
    spellings, distinct = {(prompt.history, prompt.text) for prompt in prompts}, {prompt.id for prompt in prompts}
    alike = len(spellings) - len(distinct)
    if not alike:
        return []
    said = f"{alike} prompts differ from others in letter case, white space or Unicode form alone"
    return [f"{said}: they count as the same, and {len(distinct)} are told apart"]


def number_cell(path: Path, line: int, row: Row, column: str) -> float:
    """Return a finite number; a text is one only where the file holds nothing else.

    Raises:
        DataError: anything else; a score that is missing is never filled in.
    """
    value = row.get(column)
    textual = table_files.ending(path) in TEXTUAL
    if isinstance(value, bool) or not isinstance(value, str if textual else int | float | Decimal):
        refuse(path, line, column, value, _wanted(value, textual=textual))
    try:
        number = decimal(value) if isinstance(value, str) else float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        refuse(path, line, column, value, _wanted(value, textual=textual))
    if abs(number) > LARGEST:
        refuse(path, line, column, value, f"a number of at most {LARGEST:g} in size")
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


def refuse(path: Path, line: int, column: str, value: object, expected: str) -> NoReturn:
    """Raise the ``DataError`` of one cell."""
    given = "nothing" if value is None or value == "" else repr(value)[:60]
    raise DataError(f"{path}, line {line}: column {column!r} holds {given}; expected {expected}")
