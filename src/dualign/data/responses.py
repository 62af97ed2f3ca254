"""Files of responses to be scored: prompt, response, and further columns that are carried along."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.data.layouts import nearest
from dualign.data.prompts import column_text
from dualign.data.sources.rows import encodable
from dualign.data.sources.table import read_rows
from dualign.errors import DataError
from dualign.records import Prompt

NEEDED = ("prompt", "response")
HALF = "half of a character (a lone surrogate)"


@dataclass(frozen=True, slots=True)
class ResponseFile:
    """The rows of a file of responses; the three lists are parallel."""

    prompts: list[Prompt]
    responses: list[str]
    """May be empty texts: a model can answer nothing."""
    rows: list[Mapping[str, Any]]
    """All columns as they were read."""


def read_responses(path: str | Path) -> ResponseFile:
    """Return the prompts, responses and rows of a file with the columns ``prompt`` and ``response``.

    Raises:
        MissingError: the file is missing or unreadable.
        DataError: a row lacks one of the two columns or holds no text there, or a text or a name anywhere in it
            cannot be written to a file; its line is named.
    """
    path = Path(path)
    rows = read_rows(path)
    prompts, responses = [], []
    for row in rows:
        for name in NEEDED:
            value = row.values.get(name)
            if name not in row.values:
                raise DataError(f"{path}: line {row.line}: no column {name!r}; {nearest(name, row.values)}")
            if not isinstance(value, str):
                raise DataError(f"{path}: line {row.line}: {name} is {value!r}; a text is needed")
        for name, value in row.values.items():
            if not encodable(name):
                raise DataError(f"{path}: line {row.line}: the name {name!r} of a column holds {HALF}")
            if not all(encodable(text) for text in _texts(value)):
                raise DataError(f"{path}: line {row.line}: {name} holds {HALF}")
        own = {name: text for name, value in row.values.items() if (text := column_text(value)) is not None}
        columns = {name: text for name, text in own.items() if name not in NEEDED}
        prompts.append(Prompt(row.values["prompt"], columns, place=f"{path}: line {row.line}"))
        responses.append(row.values["response"])
    return ResponseFile(prompts, responses, [row.values for row in rows])


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a value of JSON or Parquet, the names in its objects included."""
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, str):
            yield current
        elif isinstance(current, Mapping):
            waiting += [*current, *current.values()]
        elif isinstance(current, list | tuple):
            waiting += current
