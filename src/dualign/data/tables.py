"""Tables: the rows of a file or of data in memory, under the names that their columns are read as; and their layouts.

A layout says which columns of a table hold prompts and answers; where none is recognised, what to write is hinted.
"""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from dualign.data.cells import RowError, Values, at, column_text, encodable
from dualign.data.table_files import (
    BY_COLUMN,
    COLUMN,
    EMPTY,
    MENDS,
    READERS,
    TEXTUAL,
    Row,
    TableError,
    check_columns,
    ending,
    numbered,
    read_bytes,
)
from dualign.data.turns import SYSTEM, answer_of, as_answer, as_prompt, holds_messages, with_system, without_answer
from dualign.errors import DataError, UsageError, nearest
from dualign.records import Prompt

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows, and what messages call them."""

    name: str
    """The file as it was named, or what data in memory are for."""
    rows: Sequence[Row]
    textual: bool = False
    """Whether every cell is a text, as in CSV, so that a text there may be a number or a flag."""
    unit: str = "line"
    """What a row's number counts."""

    @property
    def columns(self) -> list[str]:
        """Return every column that some row has, in the order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row.values))

    @property
    def first(self) -> dict[str, Any]:
        """Return every column, each with the first value that some row has there."""
        return {
            name: next((row.values[name] for row in self.rows if row.values.get(name) is not None), None)
            for name in self.columns
        }

    def place(self, line: int) -> str:
        """Return what messages call a row."""
        return f"{self.name}: {self.unit} {line}"

    def refusal(self, line: int, what: str) -> DataError:
        """Return the error of a row."""
        return DataError(f"{self.place(line)}: {what}")

    def each(self, read: Callable[[Row], Made]) -> list[Made]:
        """Return what ``read`` makes of every row.

        Raises:
            DataError: it raised ``RowError``; the row's place is named.
        """
        made = []
        for row in self.rows:
            try:
                made.append(read(row))
            except RowError as error:
                raise self.refusal(row.line, error.what) from None
        return made


Source = str | Path | Table | Iterable[Any]
"""What readers take: the name of a file, a table, or data in memory (``in_memory``)."""


def read_table(source: Source, *, named: str | None = None) -> Table:
    """Return the table of a file, read by the ending of its name, or of data in memory.

    ``named``: what messages call the file, where that is not its path.

    Raises:
        MissingError: there is no such file, or it cannot be read.
        DataError: the ending is unknown, a line is broken (its number is named), or there are no rows.
    """
    if not isinstance(source, str | Path):
        return source if isinstance(source, Table) else in_memory(source)
    path = Path(source)
    reader = READERS.get(ending(path))
    if reader is None:
        read_bytes(path)  # a folder, or no file at all, is said before an ending is
        hint = f"; {MENDS[ending(path)]}" if ending(path) in MENDS else ""
        known = f"known: {', '.join(READERS)} (and .gz after them)"
        raise TableError(path, f"unknown ending {ending(path)!r}; {known}{hint}")
    return _filled(Table(named or str(path), reader(path), ending(path) in TEXTUAL))


def in_memory(data: Any, name: str = "data") -> Table:
    """Return the table of a data set, a data frame, or mappings of columns to values; rows count from 1.

    A text by itself is a prompt, and so is a list of messages. ``name`` is what messages call the data.

    Raises:
        DataError: there are no rows, one is none of these, two columns have one name, or the data are columns.
    """
    if hasattr(data, "columns") and hasattr(data, "to_dict"):  # a frame of pandas, whose gaps are NaN or NA
        check_columns(list(data.columns), name)
        data = data.astype(object).where(data.notna(), None).to_dict("records")
    if isinstance(data, Mapping):
        raise TableError(name, BY_COLUMN)
    rows = (_plain({COLUMN: value} if isinstance(value, str | list) else value) for value in data)
    return _filled(Table(name, numbered(rows, name), unit="row"))


def _plain(value: Any) -> Any:
    """Return a value with scalars and arrays of NumPy as numbers and lists, and tuples as lists."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    held = value.tolist() if hasattr(value, "tolist") else value
    return _plain(held) if isinstance(held, list) else held


def _filled(table: Table) -> Table:
    if not table.rows:
        raise TableError(table.name, "has no rows", rule=EMPTY)
    return table


def read_named(source: Source, columns: Mapping[str, str] | None, names: Iterable[str]) -> Table:
    """Return the table of ``read_table`` with columns under the names that they are read as, each one of ``names``.

    Raises:
        UsageError: another name, or one column is to be read as two.
        MissingError: as ``read_table``.
        DataError: as ``read_table``, or no row has such a column.
    """
    check_readable(columns or {}, names)
    return renamed(read_table(source), columns or {})


def check_readable(columns: Mapping[str, str], names: Iterable[str], *, unknown: str = "nothing is read as") -> None:
    """Check that each name that a column is to be read as is one of ``names``; ``cost_*`` stands for all that so begin.

    Raises:
        UsageError: another name.
    """
    known = list(dict.fromkeys(names))
    for read in columns:
        if not any(fnmatch.fnmatchcase(read, pattern) for pattern in known):
            raise UsageError(f"columns: {unknown} {read!r}; {nearest(read, known)}")


def renamed(table: Table, columns: Mapping[str, str]) -> Table:
    """Return the table with columns under the names that they are read as; a column that had such a name gives way.

    ``columns``: column of the file by that name, ``{"prompt": "question"}``; a path reaches into objects and lists
    (``output.completion``, ``resps.0.0``), and what it leads to becomes a column beside the others.

    Raises:
        UsageError: one column is to be read as two.
        DataError: no row has such a column.
    """
    if not columns:
        return table
    if len(set(columns.values())) < len(columns):
        raise UsageError("columns: one column of the file is to be read as two")
    names = table.columns
    for read, name in columns.items():
        if name not in names and all(at(row.values, name) is None for row in table.rows):
            raise DataError(f"{table.name}: no column {name!r} to read as {read!r}; {nearest(name, names)}")
    return replace(table, rows=[Row(row.line, _renamed(row.values, columns)) for row in table.rows])


def _renamed(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    old = {*columns, *columns.values()}
    found = {name: at(values, column) for name, column in columns.items()}
    read = {name: value for name, value in found.items() if value is not None or columns[name] in values}
    return {**read, **{name: value for name, value in values.items() if name not in old}}


Reading = Callable[[Values], Any]
SIDES = ("user", "assistant")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the prompt and, in demonstrations, the response of a row are."""

    name: str
    needs: frozenset[str]
    """Columns that the rows must have for this layout."""
    prompt: Reading
    response: Reading | None = None
    """None: this layout holds no response that a model should imitate."""
    texts: frozenset[str] = frozenset()
    """Columns that are the prompt or the response themselves, no property of the prompt."""

    def asked(self, row: Row, table: Table, columns: Mapping[str, str] | None = None) -> Prompt:
        """Return the prompt of a row with the row's other columns; ``columns`` override these.

        Raises:
            RowError: it is no prompt.
        """
        prompt = with_system(as_prompt(self.prompt(row.values)), row.values)
        texts = {name: column_text(value) for name, value in row.values.items()}
        own = {
            name: text
            for name, text in texts.items()
            if text is not None and name not in self.texts.union(SYSTEM) and encodable(name + text)
        }
        return replace(prompt, columns={**own, **(columns or {})}, place=table.place(row.line))

    def answer(self, row: Row) -> str:
        """Return the response of a row.

        Raises:
            RowError: it is none.
        """
        return as_answer(self.response(row.values) if self.response else None)


def column(name: str) -> Reading:
    """Return the reading of one column."""
    return lambda values: values.get(name)


def instructed(values: Values) -> Any:
    """Return the instruction with its input; after earlier turns, written as pairs of both sides, as messages."""
    said, past = _with_input(values.get("instruction"), values.get("input")), values.get("history")
    if not isinstance(past, list) or not past:
        return said
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in past):
        return past
    earlier = [{"role": role, "content": text} for pair in past for role, text in zip(SIDES, pair, strict=True)]
    return [*earlier, {"role": SIDES[0], "content": said}]


def _with_input(instruction: Any, given: Any) -> Any:
    """Return the instruction, followed by its input after a blank line where there is one."""
    if isinstance(instruction, str) and isinstance(given, str) and given.strip():
        return f"{instruction}\n\n{given}"
    return instruction


def _first_instance(values: Values) -> Mapping[str, Any]:
    instance = at(values, "instances.0")
    return instance if isinstance(instance, Mapping) else {}


def _layout(name: str, needs: str, prompt: Reading, response: Reading | None = None, texts: str = "") -> Layout:
    return Layout(name, frozenset(needs.split()), prompt, response, frozenset((texts or needs).split()))


def _transcripts(name: str) -> Layout:
    """Return the layout of a column of whole conversations: without the answer at the end, and that answer."""
    return _layout(
        name, name, lambda values: without_answer(values.get(name)), lambda values: answer_of(values.get(name))
    )


LAYOUTS: tuple[Layout, ...] = (
    _layout("xstest", "prompt label type", column("prompt"), None, "prompt"),
    _layout("beavertails-evaluation", "prompt category", column("prompt"), None, "prompt"),
    # The target of advbench is the opening an attack aims for: never something to imitate.
    _layout("advbench", "goal target", column("goal")),
    _layout(
        "self-instruct",
        "instruction instances",
        lambda values: _with_input(values.get("instruction"), _first_instance(values).get("input")),
        lambda values: _first_instance(values).get("output"),
    ),
    _layout("instructions", "instruction output", instructed, column("output"), "instruction input output history"),
    _layout("safety pairs", "prompt safer less_safe", column("prompt")),
    _layout("demonstrations", "prompt response", column("prompt"), column("response")),
    _layout("completions", "prompt completion", column("prompt"), column("completion")),
    _layout("prompts", "prompt", column("prompt")),
    _transcripts("messages"),
    _transcripts("conversations"),
    _layout("instruction prompts", "instruction", instructed, None, "instruction input history"),
)
"""From the most particular to the most general; the first whose columns are all there is taken."""
_BY_NAME = {layout.name: layout for layout in LAYOUTS}
_ANSWERED = ("demonstrations", "completions", "instructions", "messages", "conversations")
ANSWERED = tuple(_BY_NAME[name] for name in _ANSWERED)
"""Layouts in which a model's answer may stand, from the most particular to the most general."""
READ_AS = ("prompt", "response", *(name for layout in LAYOUTS for name in sorted(layout.needs | layout.texts)), *SYSTEM)
"""Names that columns of prompts and demonstrations may be renamed to."""
LIKELY: Mapping[str, tuple[str, ...]] = {
    "prompt": (
        *("prompt", "messages", "conversations", "question", "instruction", "query", "input", "context_messages"),
        *("arguments.gen_args_0.arg_0", "arguments.0.0", "doc.question", "doc.prompt", "problem", "goal", "text"),
    ),
    "response": (
        *("response", "predict", "prediction", "completion", "output.completion", "filtered_resps.0", "resps.0.0"),
        *("output", "answer", "generated_text", "model_output", "generation", "text"),
    ),
}
"""Where files of known harnesses (lm-eval, Inspect, LLaMA-Factory, ...) hold prompts and responses; for hints alone."""


def recognised(names: Iterable[str], *, answered: bool = False) -> Layout | None:
    """Return the layout of rows with these columns, or none; ``answered``: one with a response before the others."""
    present = set(names)
    fitting = [layout for layout in LAYOUTS if layout.needs <= present]
    return next((one for one in fitting if answered and one.response is not None), next(iter(fitting), None))


def chosen_layout(
    table: Table, *, prompt_column: str | None = None, response_column: str | None = None, answered: bool = False
) -> Layout:
    """Return the layout to read by: the recognised one, with the columns that the caller names put in.

    Args:
        table: the rows.
        prompt_column: the prompt's column; none: by the layout.
        response_column: the response's column; none: by the layout.
        answered: a response is wanted.

    Raises:
        DataError: a named column does not exist, or none is named and no layout is recognised.
    """
    present = table.columns
    for given in (prompt_column, response_column):
        if given is not None and given not in present:
            raise DataError(f"{table.name}: no column {given!r}; {nearest(given, present)}")
    layout = recognised(present, answered=answered)
    if prompt_column is not None:
        response, name = (layout.response, layout.name) if layout else (None, "named columns")
        layout = Layout(name, frozenset(), column(prompt_column), response, frozenset({prompt_column}))
    if layout is None:
        known = "; ".join(sorted(" + ".join(sorted(layout.needs)) for layout in LAYOUTS))
        wanted = f"{mapping_hint(table.first, ('prompt', 'response')[: 1 + answered])} (in a config: rename)"
        raise DataError(f"{table.name}: columns {', '.join(present)} are no known layout ({known}); {wanted}")
    if response_column is None:
        return layout
    return replace(layout, response=column(response_column), texts=layout.texts | {response_column})


def answered_layout(table: Table) -> Layout:
    """Return the layout of rows that hold a model's answer.

    Raises:
        DataError: there is no column of prompts, or none of answers.
    """
    first = table.first
    said = {name for name, value in first.items() if value is not None}
    layout = next((known for known in ANSWERED if known.needs <= said), None)
    if layout is not None:
        return layout
    absent = [name for name in ("prompt", "response") if name not in first]
    if not absent:  # no row has both
        return ANSWERED[0]
    lacks = "; ".join(f"no column {name!r}" for name in absent)
    hint = mapping_hint(first, absent)
    raise table.refusal(table.rows[0].line, f"{lacks}; the columns are {', '.join(first)}; {hint}")


def mapping_hint(values: Values, wanted: Sequence[str], *, more: str = "") -> str:
    """Return what to write so that columns are read as ``wanted``; the likely one is named where one is known.

    ``more``: a further pair NAME=COLUMN to name.
    """
    likely = {name: next((path for path in LIKELY[name] if _says(at(values, path))), "COLUMN") for name in wanted}
    pairs = [f"{name}={path}" for name, path in likely.items()]
    return f"name the columns: --columns {','.join([*pairs, *([more] if more else [])])}"


def _says(value: object) -> bool:
    return bool(value) and (isinstance(value, str) or holds_messages(value))
