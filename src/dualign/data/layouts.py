"""Layouts of tables of prompts and answers: which columns hold them, and what to write where none is recognised."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dualign.data.cells import Values, at, column_text, encodable
from dualign.data.table_files import Row
from dualign.data.tables import Table
from dualign.data.turns import SYSTEM, answer_of, as_answer, as_prompt, holds_messages, with_system, without_answer
from dualign.errors import DataError, nearest
from dualign.records import Prompt

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
ANSWERED = tuple(
    layout
    for name in ("demonstrations", "completions", "instructions", "messages", "conversations")
    for layout in LAYOUTS
    if layout.name == name
)
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
    table: Table, *, prompt_column: str | None, response_column: str | None, answered: bool = False
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
        response = layout.response if layout else None
        name = layout.name if layout else "named columns"
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
