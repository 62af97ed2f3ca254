"""Prompts, demonstrations and responses of tables: read, checked, filtered, all of it counted."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from dualign.data.cells import HALF, RowError, column_text, encodable
from dualign.data.formats.table import preference_file
from dualign.data.table_files import Row
from dualign.data.tables import (
    ANSWERED,
    READ_AS,
    Layout,
    Source,
    Table,
    answered_layout,
    chosen_layout,
    mapping_hint,
    read_named,
    recognised,
)
from dualign.data.turns import SYSTEM, check_attached, written
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


@dataclass(frozen=True, slots=True)
class PromptFile:
    """What was read of one table of prompts; every row is counted once."""

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
    """What was read of one table of demonstrations; every row is counted once."""

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


@dataclass(frozen=True, slots=True)
class ResponseFile:
    """The rows of a table of responses; the three lists are parallel."""

    prompts: list[Prompt]
    responses: list[str]
    """May be empty texts: a model can answer nothing."""
    rows: list[Mapping[str, Any]]
    """All columns as they were read."""


def read_prompts(
    source: Source,
    *,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
    max_words: int | None = None,
    rename: Mapping[str, str] | None = None,
) -> PromptFile:
    """Return the prompts of a table in its order, and how many rows were left out for which reason.

    Args:
        source: JSONL, JSON list, CSV, TSV, Parquet or plain text (one prompt a line), also gzipped; or prompts in
            memory (``tables.in_memory``).
        columns: constant columns that every prompt gets; they override the file's own.
        where: keep only prompts with these column values (the constant columns count).
        max_words: longer prompts are dropped; the last turn of a conversation counts.
        rename: column of the file by the name it is read as, ``{"prompt": "question"}``.

    Raises:
        MissingError: the file is missing or unreadable.
        UsageError: a name of ``rename`` that nothing is read as.
        DataError: a row is broken (its line is named), a column does not exist, or no prompt is left.
    """
    table = read_named(source, rename, READ_AS)
    if recognised(table.columns) is None:
        table = _asked_in_pairs(table) or table
    layout = chosen_layout(table)
    kept, out = _kept(table, layout, columns or {}, where or {}, max_words)
    every = [prompt for _, prompt in kept]
    distinct = _first_of(every, [prompt.id for prompt in every])
    if not distinct:
        raise _none_left(table, where, max_words)
    return PromptFile(
        prompts=distinct,
        layout=layout.name,
        rows=len(table.rows),
        duplicates=len(every) - len(distinct),
        alike=spelt_alike(every),
        every=every,
        **out,
    )


def spelt_alike(prompts: Sequence[Prompt]) -> int:
    """Return how many prompts differ from another one in spelling alone."""
    spellings, distinct = {(prompt.history, prompt.text) for prompt in prompts}, {prompt.id for prompt in prompts}
    return len(spellings) - len(distinct)


def read_demonstrations(  # noqa: PLR0913
    source: Source,
    *,
    prompt_column: str | None = None,
    response_column: str | None = None,
    where: Mapping[str, str] | None = None,
    max_words: int | None = None,
    rename: Mapping[str, str] | None = None,
    imitated: bool = False,
) -> DemonstrationFile:
    """Return (prompt, response) rows of a table in its order, and what was left out; arguments as ``read_prompts``.

    ``prompt_column``, ``response_column``: none: by the layout that the columns are recognised as.

    ``imitated``: a model is to give these answers. Rows whose answer is marked as bad, and rows that cannot be read,
    are then left out and counted.

    Raises:
        MissingError: the file is missing or unreadable.
        UsageError: a name of ``rename`` that nothing is read as.
        DataError: a row is broken, the layout has no response, or nothing is left.
    """
    every = table = read_named(source, rename, READ_AS)
    layout = chosen_layout(table, prompt_column=prompt_column, response_column=response_column, answered=True)
    if layout.response is None:
        wanted = f"{mapping_hint(table.first, ('response',))} (in a config: rename)"
        raise DataError(f"{table.name}: layout {layout.name!r} has no response; {wanted}")
    negative = _negatives(table, layout) if imitated else set()
    broken = _broken(table, layout, negative) if imitated else {}
    table = replace(table, rows=[row for row in table.rows if row.line not in negative and row.line not in broken])
    if not table.rows:
        bad = f"{len(negative)} with an answer that is marked as bad, {len(broken)} broken"
        nothing = f"{table.name}: nothing to imitate in {len(every.rows)} rows ({bad})"
        raise DataError(next(iter(broken.values()), nothing))
    kept, out = _kept(table, layout, {}, where or {}, max_words)
    answers = replace(table, rows=[row for row, _ in kept]).each(layout.answer)
    pairs = [(prompt, answer) for (_, prompt), answer in zip(kept, answers, strict=True)]
    filled = [(prompt, response) for prompt, response in pairs if response.strip()]
    distinct = _first_of(filled, [(prompt.id, response) for prompt, response in filled])
    if not distinct:
        raise _none_left(table, where, max_words)
    return DemonstrationFile(
        demonstrations=distinct,
        layout=layout.name,
        rows=len(every.rows),
        duplicates=len(filled) - len(distinct),
        empty=len(pairs) - len(filled),
        negative=len(negative),
        broken=tuple(broken.values()),
        **out,
    )


def read_responses(source: Source, *, rename: Mapping[str, str] | None = None) -> ResponseFile:
    """Return the prompts, responses and rows of a table to be scored; both may be texts or messages.

    Read are ``prompt`` with ``response`` or ``completion``, ``instruction`` with ``output``, and whole conversations
    (``messages``, ``conversations``) that end with the answer; a column ``system`` holds a system turn. Further columns
    are carried along.

    Args:
        source: JSONL, JSON list, CSV, TSV or Parquet, also gzipped; or rows in memory.
        rename: column of the file by the name it is read as, ``{"response": "predict"}``.

    Raises:
        MissingError: the file is missing or unreadable.
        UsageError: a name of ``rename`` that nothing is read as.
        DataError: a row lacks prompt or response or holds something else there, or a text or a name anywhere in it
            cannot be written to a file; its line is named.
    """
    names = [name for layout in ANSWERED for name in sorted(layout.needs | layout.texts)]
    table = read_named(source, rename, (*names, *SYSTEM))
    layout = answered_layout(table)
    pairs = table.each(partial(_answered, table=table, layout=layout))
    return ResponseFile(
        [prompt for prompt, _ in pairs], [response for _, response in pairs], [row.values for row in table.rows]
    )


def _answered(row: Row, *, table: Table, layout: Layout) -> Demonstration:
    """Return the prompt and the response of a row; every text in it can be written to a file."""
    for name, value in row.values.items():
        if not encodable(name):
            raise RowError("lone surrogate", f"the name {name!r} of a column holds {HALF}")
        if not encodable(json.dumps(value, ensure_ascii=False, default=str)):
            raise RowError("lone surrogate", f"{name} holds {HALF}")
    for name in sorted(layout.needs):
        if name not in row.values:
            raise RowError("missing column", f"no column {name!r}; {nearest(name, row.values)}")
    return layout.asked(row, table), layout.answer(row)


def _asked_in_pairs(table: Table) -> Table | None:
    """Return a row for each prompt of a preference file without a column of prompts; none where it is no such file.

    Raises:
        DataError: a row of it says no prompt.
    """
    try:
        found = preference_file(table)
    except DataError:
        return None
    if found.faults:
        raise table.refusal(found.faults[0].line, f"{found.faults[0].what} (read as {found.format})")
    rows = [Row(row.line, {**row.prompt.columns, "prompt": written(row.prompt)}) for row in found.rows]
    return replace(table, rows=rows)


def _negatives(table: Table, layout: Layout) -> set[int]:
    """Return the lines whose answer is marked as bad, or that hold a rejected answer alone."""
    said = {name: {_flag(row, name) for row in table.rows} for name in GOOD}
    flags = [name for name in GOOD if said[name] <= FLAGS or said[name] & {"true", "false"}]
    return {
        row.line
        for row in table.rows
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


def _broken(table: Table, layout: Layout, negative: set[int]) -> dict[int, str]:
    """Return what is wrong with each other row that cannot be read, by its line."""
    broken = {}
    for row in table.rows:
        try:
            if row.line not in negative:
                _prompt(row, table=table, layout=layout, columns={})
                layout.answer(row)
        except RowError as error:
            broken[row.line] = str(table.refusal(row.line, error.what))
    return broken


def _kept(
    table: Table, layout: Layout, columns: Mapping[str, str], where: Mapping[str, str], max_words: int | None
) -> tuple[list[tuple[Row, Prompt]], dict[str, int]]:
    """Return the rows inside ``where`` that are not too long, with their prompts, and how many others there are.

    Raises:
        DataError: a name of ``where`` that no row knows, or a row is no prompt.
    """
    prompts = table.each(partial(_prompt, table=table, layout=layout, columns=columns))
    known = sorted({name for prompt in prompts for name in prompt.columns})
    for name in where:
        if name not in known:
            raise DataError(f"{table.name}: where: no column {name!r}; {nearest(name, known)}")
    inside = [(row, one) for row, one in zip(table.rows, prompts, strict=True) if in_slice(one.columns, where)]
    short = [(row, one) for row, one in inside if max_words is None or len(one.text.split()) <= max_words]
    return short, {"filtered": len(table.rows) - len(inside), "too_long": len(inside) - len(short)}


def _prompt(row: Row, *, table: Table, layout: Layout, columns: Mapping[str, str]) -> Prompt:
    check_attached(row.values)
    prompt = layout.asked(row, table, columns)
    if not prompt.text.strip():
        raise RowError("empty prompt", "the prompt is empty")
    return prompt


def _first_of(items: Sequence[Item], keys: Sequence[object]) -> list[Item]:
    """Return the first item of each key, in order."""
    first = dict(zip(reversed(keys), reversed(items), strict=True))
    return [first[key] for key in dict.fromkeys(keys)]


def _none_left(table: Table, where: Mapping[str, str] | None, max_words: int | None) -> DataError:
    return DataError(f"{table.name}: none of {len(table.rows)} rows is left (where: {dict(where or {})}, {max_words=})")
