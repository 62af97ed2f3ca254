"""Prompts and demonstrations from files: read, checked, filtered, without exact duplicates, all of it counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dualign.data.conversations import (
    LAYOUTS,
    Layout,
    as_answer,
    as_prompt,
    chosen_layout,
    mapping_hint,
    recognised,
    written,
)
from dualign.data.formats.source import SYSTEM, RowError
from dualign.data.formats.turns import check_attached, with_system
from dualign.data.table_files import Row, encodable, ending, read_rows, readable, renamed
from dualign.errors import DataError, nearest
from dualign.records import Prompt, in_slice

Demonstration = tuple[Prompt, str]
Item = TypeVar("Item")
GOOD = ("label", "is_safe", "is_response_safe", "safe", "kto_tag", "desirable")
"""Columns that say of a row's answer whether it is good, where they hold flags."""
BAD = frozenset({"false", "f", "no", "n", "0", "0.0", "-1", "-1.0", "bad", "rejected", "undesirable"})
FLAGS = BAD | {"true", "t", "yes", "y", "1", "1.0", "good", "chosen", "desirable", "", "none", "null", "nan", "n/a"}
"""What a column of flags holds, in lower case; one with true or false in it is one whatever else it holds."""
REJECTED = ("rejected", "less_safe")
"""Columns of answers that lost a comparison."""
_KNOWN = {name: None for layout in LAYOUTS for name in sorted(layout.needs | layout.texts)}
READ_AS = ("prompt", "response", *_KNOWN, *SYSTEM)
"""Names that columns may be renamed to."""


@dataclass(frozen=True, slots=True)
class PromptFile:
    """What was read of one file of prompts; every row is counted once."""

    prompts: list[Prompt]
    layout: str
    rows: int
    filtered: int
    """Rows outside ``where``."""
    too_long: int
    duplicates: int
    """Rows whose prompt, normalised, had come before."""
    alike: int
    """Those of the duplicates that are spelt otherwise: in letter case, white space or Unicode form."""
    every: list[Prompt]
    """The prompt of each row that is neither filtered nor too long, duplicates included."""


@dataclass(frozen=True, slots=True)
class DemonstrationFile:
    """What was read of one file of demonstrations; every row is counted once."""

    demonstrations: list[Demonstration]
    layout: str
    rows: int
    filtered: int
    too_long: int
    duplicates: int
    """Rows whose prompt and response had both come before."""
    empty: int
    """Rows with an empty response."""
    negative: int = 0
    """Rows whose answer is marked as bad, left out where answers are to be imitated."""
    broken: tuple[str, ...] = ()
    """What is wrong with each row that cannot be read, left out where answers are to be imitated."""


def read_prompts(
    path: str | Path,
    *,
    prompt_column: str | None = None,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
    max_words: int | None = None,
    rename: Mapping[str, str] | None = None,
) -> PromptFile:
    """Return the prompts of a file in its order, and how many rows were left out for which reason.

    Args:
        path: JSONL, JSON list, CSV, TSV, Parquet or plain text (one prompt a line), also gzipped.
        prompt_column: the prompt's column; none: by the layout that the columns are recognised as.
        columns: constant columns that every prompt gets; they override the file's own.
        where: keep only prompts with these column values (the constant columns count).
        max_words: longer prompts are dropped; the last turn of a conversation counts.
        rename: column of the file by the name it is read as, ``{"prompt": "question"}``.

    Raises:
        MissingError: the file is missing or unreadable.
        UsageError: a name of ``rename`` that nothing is read as.
        DataError: a row is broken (its line is named), a column does not exist, or no prompt is left.
    """
    path = Path(path)
    rows = _rows(path, rename, named=prompt_column is not None)
    layout = _layout(rows, path, prompt_column, None)
    taken = _taken(rows, path, layout, columns or {}, where or {})
    short = [prompt for _, prompt in taken if _within(prompt, max_words)]
    distinct = _first_of(short, [prompt.id for prompt in short])
    if not distinct:
        raise DataError(f"{path}: none of {len(rows)} rows is left (where: {dict(where or {})}, {max_words=})")
    spellings = {(prompt.history, prompt.text) for prompt in short}
    return PromptFile(
        prompts=distinct,
        layout=layout.name,
        rows=len(rows),
        filtered=len(rows) - len(taken),
        too_long=len(taken) - len(short),
        duplicates=len(short) - len(distinct),
        alike=len(spellings) - len(distinct),
        every=short,
    )


def load_prompts(
    path: str | Path,
    *,
    prompt_column: str | None = None,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
    max_words: int | None = None,
    rename: Mapping[str, str] | None = None,
) -> list[Prompt]:
    """Return the prompts of ``read_prompts`` alone."""
    found = read_prompts(
        path, prompt_column=prompt_column, columns=columns, where=where, max_words=max_words, rename=rename
    )
    return found.prompts


def read_demonstrations(  # noqa: PLR0913
    path: str | Path,
    *,
    prompt_column: str | None = None,
    response_column: str | None = None,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
    max_words: int | None = None,
    rename: Mapping[str, str] | None = None,
    imitated: bool = False,
) -> DemonstrationFile:
    """Return (prompt, response) rows of a file in its order, and what was left out; arguments as ``read_prompts``.

    ``imitated``: a model is to give these answers. Rows whose answer is marked as bad, and rows that cannot be read,
    are then left out and counted.

    Raises:
        MissingError: the file is missing or unreadable.
        UsageError: a name of ``rename`` that nothing is read as.
        DataError: a row is broken, the layout has no response, or nothing is left.
    """
    path = Path(path)
    readable(READ_AS, rename or {})
    every = renamed(read_rows(path), str(path), rename or {})
    rows: Sequence[Row] = every
    layout = _layout(rows, path, prompt_column, response_column, answered=True)
    if layout.response is None:
        wanted = f"{mapping_hint(_values(rows), ('response',))} (in a config: rename)"
        raise DataError(f"{path}: layout {layout.name!r} has no response; {wanted}")
    negative = 0
    broken: tuple[str, ...] = ()
    if imitated:
        rows, negative, broken = _imitable(every, path, layout)
    taken = _taken(rows, path, layout, columns or {}, where or {})
    short = [(row, prompt) for row, prompt in taken if _within(prompt, max_words)]
    pairs = [(prompt, _answer(layout.response(row.values), path, row.line)) for row, prompt in short]
    filled = [(prompt, response) for prompt, response in pairs if response.strip()]
    distinct = _first_of(filled, [(prompt.id, response) for prompt, response in filled])
    if not distinct:
        raise DataError(f"{path}: none of {len(rows)} rows is left (where: {dict(where or {})}, {max_words=})")
    return DemonstrationFile(
        demonstrations=distinct,
        layout=layout.name,
        rows=len(every),
        filtered=len(rows) - len(taken),
        too_long=len(taken) - len(short),
        duplicates=len(filled) - len(distinct),
        empty=len(pairs) - len(filled),
        negative=negative,
        broken=broken,
    )


def load_demonstrations(
    path: str | Path,
    *,
    prompt_column: str | None = None,
    response_column: str | None = None,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
    max_words: int | None = None,
) -> list[Demonstration]:
    """Return the (prompt, response) rows of ``read_demonstrations`` alone."""
    return read_demonstrations(
        path,
        prompt_column=prompt_column,
        response_column=response_column,
        columns=columns,
        where=where,
        max_words=max_words,
    ).demonstrations


def column_text(value: Any) -> str | None:
    """Return a scalar as the text that ``where`` compares (``true`` and ``false`` as in YAML), or none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else None


def _rows(path: Path, rename: Mapping[str, str] | None, *, named: bool) -> list[Row]:
    """Return the rows of a file; those of a preference file, which no layout knows, with their prompts alone.

    ``named``: the caller names the column of the prompt.
    """
    readable(READ_AS, rename or {})
    rows = renamed(read_rows(path), str(path), rename or {})
    return rows if named or recognised(_values(rows)) else _asked_in_pairs(rows, path) or rows


def _asked_in_pairs(rows: Sequence[Row], path: Path) -> list[Row]:
    """Return a row for each prompt of a preference file without a column of prompts; none where it is no such file.

    Raises:
        DataError: a row of it says no prompt.
    """
    from dualign.data.formats.table import preference_file  # it reads columns as this module does
    from dualign.data.rows import TEXTUAL

    try:
        found = preference_file(rows, str(path), textual=ending(path) in TEXTUAL)
    except DataError:
        return []
    if found.faults:
        raise DataError(f"{path}: line {found.faults[0].line}: {found.faults[0].what} (read as {found.format})")
    return [Row(row.line, {**row.prompt.columns, "prompt": written(row.prompt)}) for row in found.rows]


def _values(rows: Sequence[Row]) -> dict[str, Any]:
    """Return every column, each with the first value that some row has there."""
    values: dict[str, Any] = {}
    for row in rows:
        for name, value in row.values.items():
            if values.get(name) is None:
                values[name] = value
    return values


def _layout(
    rows: Sequence[Row], path: Path, prompt_column: str | None, response_column: str | None, *, answered: bool = False
) -> Layout:
    return chosen_layout(
        _values(rows), str(path), prompt_column=prompt_column, response_column=response_column, answered=answered
    )


def _imitable(rows: Sequence[Row], path: Path, layout: Layout) -> tuple[list[Row], int, tuple[str, ...]]:
    """Return the rows that may be imitated, how many have a bad answer, and what is wrong with each broken one.

    Raises:
        DataError: no row is left.
    """
    negative = _negatives(rows, layout)
    others = [row for row in rows if row.line not in negative]
    broken = {row.line: what for row in others if (what := _wrong(row, path, layout))}
    left = [row for row in others if row.line not in broken]
    if not left:
        bad = f"{len(negative)} with an answer that is marked as bad, {len(broken)} broken"
        raise DataError(next(iter(broken.values()), f"{path}: nothing to imitate in {len(rows)} rows ({bad})"))
    return left, len(negative), tuple(broken.values())


def _negatives(rows: Sequence[Row], layout: Layout) -> set[int]:
    """Return the lines whose answer is marked as bad, or that hold a rejected answer alone."""
    said = {name: {_flag(row, name) for row in rows} for name in GOOD}
    flags = [name for name in GOOD if said[name] <= FLAGS or said[name] & {"true", "false"}]
    return {
        row.line
        for row in rows
        if any(_flag(row, name) in BAD for name in flags) or _only_rejected(row, layout) or _unweighted(row)
    }


def _flag(row: Row, name: str) -> str:
    return (column_text(row.values.get(name)) or "").strip().lower()


def _unweighted(row: Row) -> bool:
    """Return whether the last message of a transcript has the weight 0, which says that nothing is learnt from it."""
    talks = (row.values.get(name) for name in ("messages", "conversations"))
    lasts = [talk[-1] for talk in talks if isinstance(talk, list) and talk]
    return any(isinstance(last, Mapping) and last.get("weight") == 0 for last in lasts)


def _only_rejected(row: Row, layout: Layout) -> bool:
    response = layout.response(row.values) if layout.response is not None else None
    return not response and any(row.values.get(name) for name in REJECTED)


def _wrong(row: Row, path: Path, layout: Layout) -> str:
    """Return what is wrong with a row by itself; empty: nothing."""
    try:
        _prompt(row, path, layout, {})
        if layout.response is not None:
            _answer(layout.response(row.values), path, row.line)
    except DataError as error:
        return str(error)
    return ""


def _taken(
    rows: Sequence[Row], path: Path, layout: Layout, columns: Mapping[str, str], where: Mapping[str, str]
) -> list[tuple[Row, Prompt]]:
    """Return the rows inside ``where`` with their prompts; a ``where`` that no row knows is an error."""
    prompts = [(row, _prompt(row, path, layout, columns)) for row in rows]
    known = sorted({name for _, prompt in prompts for name in prompt.columns})
    for name in where:
        if name not in known:
            raise DataError(f"{path}: where: no column {name!r}; {nearest(name, known)}")
    return [(row, prompt) for row, prompt in prompts if in_slice(prompt.columns, where)]


def _prompt(row: Row, path: Path, layout: Layout, columns: Mapping[str, str]) -> Prompt:
    try:
        check_attached(row.values)
        prompt = with_system(as_prompt(layout.prompt(row.values)), row.values)
    except RowError as error:
        raise DataError(f"{path}: line {row.line}: {error.what}") from None
    if not prompt.text.strip():
        raise DataError(f"{path}: line {row.line}: the prompt is empty")
    spoken = layout.texts.union(SYSTEM)
    own = {
        name: value
        for name, value in ((name, column_text(value)) for name, value in row.values.items())
        if value is not None and name not in spoken and encodable(name + value)
    }
    place = f"{path}: line {row.line}"
    return Prompt(prompt.text, {**own, **columns}, history=prompt.history, place=place)


def _answer(value: Any, path: Path, line: int) -> str:
    try:
        return as_answer(value)
    except RowError as error:
        raise DataError(f"{path}: line {line}: {error.what}") from None


def _first_of(items: Sequence[Item], keys: Sequence[object]) -> list[Item]:
    """Return the first item of each key, in order."""
    first: dict[object, Item] = {}
    for key, item in zip(keys, items, strict=True):
        first.setdefault(key, item)
    return list(first.values())


def _within(prompt: Prompt, max_words: int | None) -> bool:
    return max_words is None or len(prompt.text.split()) <= max_words
