"""Files of responses to be scored: prompt, response, and further columns that are carried along."""

from collections.abc import Mapping
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
        DataError: a row lacks one of the two columns or holds no text there; its line is named.
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
            if isinstance(value, str) and not encodable(value):
                raise DataError(f"{path}: line {row.line}: {name} holds half of a character (a lone surrogate)")
        own = {name: text for name, value in row.values.items() if (text := column_text(value)) is not None}
        columns = {name: text for name, text in own.items() if name not in NEEDED}
        prompts.append(Prompt(row.values["prompt"], columns))
        responses.append(row.values["response"])
    return ResponseFile(prompts, responses, [row.values for row in rows])
