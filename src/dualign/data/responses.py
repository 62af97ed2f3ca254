"""Files of responses to be scored: prompt, response, and further columns that are carried along."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.data.conversations import LAYOUTS, Layout, as_answer, as_prompt, mapping_hint
from dualign.data.formats.source import SYSTEM, RowError
from dualign.data.formats.turns import with_system
from dualign.data.prompts import column_text
from dualign.data.table_files import HALF, Row, encodable, read_rows, readable, renamed
from dualign.errors import DataError, nearest
from dualign.records import Prompt

ANSWERED = tuple(
    layout
    for name in ("demonstrations", "completions", "instructions", "messages", "conversations")
    for layout in LAYOUTS
    if layout.name == name
)
"""Layouts in which a model's answer may stand, from the most particular to the most general."""
READ_AS = (*{name: None for layout in ANSWERED for name in sorted(layout.needs | layout.texts)}, *SYSTEM)


@dataclass(frozen=True, slots=True)
class ResponseFile:
    """The rows of a file of responses; the three lists are parallel."""

    prompts: list[Prompt]
    responses: list[str]
    """May be empty texts: a model can answer nothing."""
    rows: list[Mapping[str, Any]]
    """All columns as they were read."""


def read_responses(path: str | Path, *, rename: Mapping[str, str] | None = None) -> ResponseFile:
    """Return the prompts, responses and rows of a file; both may be texts or messages.

    Read are ``prompt`` with ``response`` or ``completion``, ``instruction`` with ``output``, and whole conversations
    (``messages``, ``conversations``) that end with the answer; a column ``system`` holds a system turn.

    Args:
        path: JSONL, JSON list, CSV, TSV or Parquet, also gzipped.
        rename: column of the file by the name it is read as, ``{"response": "predict"}``.

    Raises:
        MissingError: the file is missing or unreadable.
        UsageError: a name of ``rename`` that nothing is read as.
        DataError: a row lacks prompt or response or holds something else there, or a text or a name anywhere in it
            cannot be written to a file; its line is named.
    """
    path = Path(path)
    readable(READ_AS, rename or {})
    rows = renamed(read_rows(path), str(path), rename or {})
    layout = _layout(rows, path)
    prompts, responses = [], []
    for row in rows:
        _check(row, path)
        prompt, response = _said(row, path, layout)
        own = {name: text for name, value in row.values.items() if (text := column_text(value)) is not None}
        columns = {name: text for name, text in own.items() if name not in layout.texts.union(SYSTEM)}
        place = f"{path}: line {row.line}"
        prompts.append(Prompt(prompt.text, columns, history=prompt.history, place=place))
        responses.append(response)
    return ResponseFile(prompts, responses, [row.values for row in rows])


def _layout(rows: Sequence[Row], path: Path) -> Layout:
    values = {name: value for row in reversed(rows) for name, value in row.values.items() if value is not None}
    layout = next((known for known in ANSWERED if known.needs <= values.keys()), None)
    if layout is not None:
        return layout
    present = list(dict.fromkeys(name for row in rows for name in row.values))
    absent = [name for name in ("prompt", "response") if name not in present]
    if not absent:  # no row has both
        return ANSWERED[0]
    said = "; ".join(f"no column {name!r}" for name in absent)
    raise DataError(
        f"{path}: line {rows[0].line}: {said}; the columns are {', '.join(present)}; {mapping_hint(values, absent)}"
    )


def _said(row: Row, path: Path, layout: Layout) -> tuple[Prompt, str]:
    for name in sorted(layout.needs):
        if name not in row.values:
            raise DataError(f"{path}: line {row.line}: no column {name!r}; {nearest(name, row.values)}")
    try:
        prompt = with_system(as_prompt(layout.prompt(row.values)), row.values)
        return prompt, as_answer(layout.response(row.values) if layout.response else None)
    except RowError as error:
        raise DataError(f"{path}: line {row.line}: {error.what}") from None


def _check(row: Row, path: Path) -> None:
    """Check that every text of a row can be written to a file."""
    for name, value in row.values.items():
        if not encodable(name):
            raise DataError(f"{path}: line {row.line}: the name {name!r} of a column holds {HALF}")
        if not all(encodable(text) for text in _texts(value)):
            raise DataError(f"{path}: line {row.line}: {name} holds {HALF}")


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
