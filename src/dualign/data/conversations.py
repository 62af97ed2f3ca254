"""What a cell says: a prompt with its history, or an answer, from a text or from messages (as such, or as JSON text).

The dialects of messages are those of preference files (``formats.turns``).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualign.data.formats.source import RowError
from dualign.data.formats.turns import PYTHON, ROLES, SPEAKERS, cell, prompt_of, spoken
from dualign.data.table_files import HALF, at, encodable
from dualign.errors import DataError, nearest
from dualign.records import Prompt, Turn


def as_prompt(value: object, what: str = "prompt") -> Prompt:
    """Return the prompt of a text, or of messages that end with the user's turn; ``what`` names it in errors.

    Raises:
        RowError: neither, or turns that do not alternate.
    """
    said = _messages(value, what)
    return Prompt(as_text(value, what)) if said is None else prompt_of(spoken({what: said}, what, "user"))


def as_answer(value: object, what: str = "response") -> str:
    """Return the answer of a text, or of one message of the assistant's.

    Raises:
        RowError: anything else.
    """
    said = _messages(value, what)
    if said is None:
        return as_text(value, what)
    turns = spoken({what: said}, what, "assistant")
    if [turn.role for turn in turns] != ["assistant"]:
        roles = ", ".join(turn.role for turn in turns[:5])
        raise RowError("wrong role", f"the {what} holds turns of {roles}; one turn of the assistant is needed")
    return turns[0].text


def as_text(value: object, what: str) -> str:
    """Return a cell that is a text.

    Raises:
        RowError: it is none, or holds half of a character.
    """
    if not isinstance(value, str):
        given = "missing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
        raise RowError("not a text", f"the {what} is {given}; a text is needed")
    if not encodable(value):
        raise RowError("lone surrogate", f"the {what} holds {HALF}")
    return value


def asked(value: object) -> Any:
    """Return a transcript without the answer that it ends with: what a model is asked; other values as they are.

    Raises:
        RowError: messages as Python prints them.
    """
    said = _messages(value, "conversation")
    return said[:-1] if isinstance(said, list) and answered(said) is not None else value


def answered(value: object) -> Any:
    """Return the assistant's message that a transcript ends with, as a list of one, or none.

    Raises:
        RowError: messages as Python prints them.
    """
    said = _messages(value, "conversation")
    if not isinstance(said, list) or not isinstance(said[-1], Mapping):
        return None
    role = next((said[-1][key] for key in SPEAKERS if said[-1].get(key) is not None), None)
    return said[-1:] if ROLES.get(str(role).strip().lower()) == "assistant" else None


def holds_messages(value: object) -> bool:
    """Return whether a cell holds messages, as such or as JSON text.

    Raises:
        RowError: messages as Python prints them.
    """
    return _messages(value, "cell") is not None


def _messages(value: object, what: str) -> list[Any] | Mapping[str, Any] | None:
    """Return what a cell holds if that is a list with anything in it, or one message; none where it is a text.

    Raises:
        RowError: messages as Python prints them, which NumPy does without commas.
    """
    if isinstance(value, str) and PYTHON.fullmatch(value):
        printed = f"messages as Python prints them ({value[:12]!r}); write them as JSON, or the file as JSONL"
        raise RowError("mixed plain and chat", f"{what} holds {printed}")
    said = cell(value) if isinstance(value, str) else value
    return said if isinstance(said, list | Mapping) and said else None


def written(prompt: Prompt) -> str | list[dict[str, str]]:
    """Return a prompt as tables hold it: its text, or with a history its messages; ``as_prompt`` reads it back."""
    if not prompt.history:
        return prompt.text
    turns = (*prompt.history, Turn("user", prompt.text))
    return [{"role": turn.role, "content": turn.text} for turn in turns]


Reading = Callable[[Mapping[str, Any]], Any]
Values = Mapping[str, Any]


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


MOST_NAMES = 24
"""Names of a hint; a message is one line."""
SIDES = ("user", "assistant")


def column(name: str) -> Reading:
    """Return the reading of one column."""
    return lambda values: values.get(name)


def _first_instance(values: Values) -> Mapping[str, Any]:
    instances = values.get("instances")
    if isinstance(instances, list) and instances and isinstance(instances[0], dict):
        return instances[0]
    return {}


def _with_input(instruction: Any, given: Any) -> Any:
    """Return the instruction, followed by its input after a blank line where there is one."""
    if isinstance(instruction, str) and isinstance(given, str) and given.strip():
        return f"{instruction}\n\n{given}"
    return instruction


def _self_instruct_prompt(values: Values) -> Any:
    return _with_input(values.get("instruction"), _first_instance(values).get("input"))


def instructed(values: Values) -> Any:
    """Return the instruction with its input; after earlier turns, written as pairs of both sides, as messages."""
    said, past = _with_input(values.get("instruction"), values.get("input")), values.get("history")
    if not isinstance(past, list) or not past:
        return said
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in past):
        return past
    earlier = [{"role": role, "content": text} for pair in past for role, text in zip(SIDES, pair, strict=True)]
    return [*earlier, {"role": SIDES[0], "content": said}]


def _transcript(name: str) -> tuple[Reading, Reading]:
    """Return the readings of a column of whole conversations: without the answer at its end, and that answer."""
    return lambda values: asked(values.get(name)), lambda values: answered(values.get(name))


def _layout(name: str, needs: str, prompt: Reading, response: Reading | None = None, texts: str = "") -> Layout:
    return Layout(name, frozenset(needs.split()), prompt, response, frozenset(texts.split()))


LAYOUTS: tuple[Layout, ...] = (
    _layout("xstest", "prompt label type", column("prompt"), None, "prompt"),
    _layout("beavertails-evaluation", "prompt category", column("prompt"), None, "prompt"),
    # The target of advbench is the opening an attack aims for: never something to imitate.
    _layout("advbench", "goal target", column("goal"), None, "goal target"),
    _layout(
        "self-instruct",
        "instruction instances",
        _self_instruct_prompt,
        lambda values: _first_instance(values).get("output"),
        "instruction instances",
    ),
    _layout(
        "instructions",
        "instruction output",
        instructed,
        column("output"),
        "instruction input output history",
    ),
    _layout("safety pairs", "prompt safer less_safe", column("prompt"), None, "prompt safer less_safe"),
    _layout("demonstrations", "prompt response", column("prompt"), column("response"), "prompt response"),
    _layout("completions", "prompt completion", column("prompt"), column("completion"), "prompt completion"),
    _layout("prompts", "prompt", column("prompt"), None, "prompt"),
    _layout("messages", "messages", *_transcript("messages"), "messages"),
    _layout("conversations", "conversations", *_transcript("conversations"), "conversations"),
    _layout("instruction prompts", "instruction", instructed, None, "instruction input history"),
)
"""From the most particular to the most general; the first whose columns are all there is taken."""


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
    with_response = [layout for layout in fitting if layout.response is not None]
    return next(iter(with_response if answered and with_response else fitting), None)


def chosen_layout(
    values: Values, where: str, *, prompt_column: str | None, response_column: str | None, answered: bool = False
) -> Layout:
    """Return the layout to read by: the recognised one, with the columns that the caller names put in.

    Args:
        values: every column of the file, each with the first value that some row has there.
        where: the file, for messages.
        prompt_column: the prompt's column; none: by the layout.
        response_column: the response's column; none: by the layout.
        answered: a response is wanted.

    Raises:
        DataError: a named column does not exist, or none is named and no layout is recognised.
    """
    present = list(values)
    for given in (prompt_column, response_column):
        if given is not None and given not in present:
            raise DataError(f"{where}: no column {given!r}; {nearest(given, present)}")
    layout = recognised(present, answered=answered)
    if prompt_column is None and layout is None:
        known = "; ".join(sorted(" + ".join(sorted(layout.needs)) for layout in LAYOUTS))
        wanted = f"{mapping_hint(values, ('prompt', 'response')[: 1 + answered])} (in a config: rename)"
        raise DataError(f"{where}: columns {', '.join(present)} are no known layout ({known}); {wanted}")
    prompt = layout.prompt if prompt_column is None and layout else column(str(prompt_column))
    response = layout.response if layout else None
    texts = set(layout.texts) if layout and prompt_column is None else {str(prompt_column)}
    if response_column is not None:
        response = column(response_column)
        texts.add(response_column)
    name = layout.name if layout else "named columns"
    return Layout(name, frozenset(), prompt, response, frozenset(texts))


def mapping_hint(values: Values, wanted: Sequence[str], *, more: str = "") -> str:
    """Return what to write so that columns are read as ``wanted``; the likely one is named where one is known.

    ``more``: a further pair NAME=COLUMN to name.
    """
    pairs = [
        f"{name}={next((path for path in LIKELY[name] if _says(at(values, path))), 'COLUMN')}"
        for name in wanted
        if name in LIKELY
    ]
    return f"name the columns: --columns {','.join([*pairs, *([more] if more else [])])}"


def _says(value: object) -> bool:
    return bool(value) and (isinstance(value, str) or holds_messages(value))
