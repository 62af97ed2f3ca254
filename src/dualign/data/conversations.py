"""What a cell says: a prompt with its history, or an answer, from a text or from messages (as such, or as JSON text).

The dialects of messages are those of preference files (``formats.turns``).
"""

from collections.abc import Mapping
from typing import Any

from dualign.data.formats.faults import RowError
from dualign.data.formats.messages import PYTHON, cell
from dualign.data.formats.turns import ROLES, SPEAKERS, prompt_of, spoken
from dualign.data.sources.rows import HALF, encodable
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
