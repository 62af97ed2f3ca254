"""Conversations: messages of any dialect to turns, and turns to a prompt with its history, or to an answer.

A cell may hold a text, messages, or messages as JSON text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from dualign.data.cells import RowError, Values, given, literal, whole_text
from dualign.records import Prompt, Turn

Role = Literal["system", "user", "assistant"]
NAMES: Mapping[Role, tuple[str, ...]] = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai"),
}
ROLES = {name: role for role, names in NAMES.items() for name in names}
"""What the speakers are called in the field, in lower case."""
TOOL_ROLES = ("tool", "tools", "tool_call", "tool_response", "function", "function_call", "observation", "ipython")
SPEAKERS = ("role", "from")
WORDS = ("content", "value", "text")
TEXT_PARTS = (None, "text", "input_text", "output_text")
ATTACHED = {
    **dict.fromkeys(("tools", "functions"), "tool turn"),
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), "image or sound"),
}
"""Columns of what goes with a prompt beside its words, and the rule that rows break in which they are not empty."""
SYSTEM = ("system", "system_prompt", "system_message")
"""Columns that hold a system turn, whatever the format; the first that says anything counts."""
PYTHON = re.compile(r"\s*\[\s*\{\s*'(?:role|content|from|value)'\s*:.*\}\s*\]\s*", re.DOTALL)
"""A list of messages as Python prints it. It is not read: NumPy prints such lists without commas, others cut them."""


def turns(values: Values, name: str) -> list[Turn]:
    """Return the turns of a column that holds messages, or a single one; roles and keys as any tool writes them.

    Raises:
        RowError: no message, an unknown role, a message without a text, or one of a tool or with an image.
    """
    messages = values.get(name)
    if isinstance(messages, Mapping):
        messages = [messages]
    if not isinstance(messages, list):
        raise RowError("not a text", f"{name} is {given(values, name)}; a list of messages is needed")
    if not messages:
        raise RowError("not a text", f"{name} holds no message; one at least is needed")
    return [_turn(message, f"message {number} of {name}") for number, message in enumerate(messages, 1)]


def spoken(values: Values, name: str, role: Role) -> list[Turn]:
    """Return the turns of a column that holds messages, or the one turn of ``role`` of a column that holds a text.

    Raises:
        RowError: as ``turns``.
    """
    value = values.get(name)
    if isinstance(value, str) or is_parts(value):
        return [Turn(role, _words(value, name))]
    if isinstance(value, list | Mapping):
        return turns(values, name)
    raise RowError("not a text", f"{name} is {given(values, name)}; a text is needed")


def is_parts(value: object) -> bool:
    """Return whether a value is the content of one message, written as parts with a type each."""
    parts = value if isinstance(value, list) else []
    return bool(parts) and all(
        isinstance(part, Mapping) and "type" in part and not any(key in part for key in SPEAKERS) for part in parts
    )


def opens_a_conversation(value: object) -> bool:
    """Return whether a value is a list of messages that the user or the system opens, a transcript and no answer."""
    if not isinstance(value, list) or not value or not isinstance(value[0], Mapping):
        return False
    return ROLES.get(speaker(_first(value[0], SPEAKERS))) in ("system", "user")


def speaker(role: object) -> str:
    """Return who a role stands for, as ``ROLES`` writes it; empty: it is no text."""
    return role.strip().rstrip(":").lower() if isinstance(role, str) else ""


def _first(message: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """Return what stands under the first of these keys that holds anything."""
    return next((message[key] for key in keys if message.get(key) is not None), None)


def _turn(message: object, where: str) -> Turn:
    if isinstance(message, str) and message.lstrip().startswith("{"):
        message = literal(message)
    if not isinstance(message, Mapping):
        raise RowError("not a text", f'{where} is no object; {{"role": ..., "content": ...}} is needed')
    role = _first(message, SPEAKERS)
    who = speaker(role)
    if who in TOOL_ROLES or any(message.get(key) for key in ("tool_calls", "function_call", "tool_call_id")):
        raise RowError("tool turn", f"{where} calls a tool or is a tool's answer; tool turns are not read")
    if who not in ROLES:
        known = ", ".join(ROLES)
        raise RowError("wrong role", f"{where} has the role {given({'role': role}, 'role')}; known: {known}")
    if (content := _first(message, WORDS)) is None:
        raise RowError("not a text", f"{where} has no content; a text is needed")
    return Turn(ROLES[who], _words(content, where))


def _words(content: object, where: str) -> str:
    """Return the text of a message: as it stands, or its parts one after the other, as chat templates write them."""
    parts = content if isinstance(content, list) else [content]
    return whole_text("".join(_part(part, where) for part in parts), where)


def _part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise RowError("not a text", f"{where} has the content {given({'content': part}, 'content')}; a text is needed")
    kind, words = part.get("type"), part.get("text")
    if kind in TEXT_PARTS and isinstance(words, str):
        return words
    if isinstance(kind, str) and ("tool" in kind or "function" in kind):
        raise RowError("tool turn", f"{where} calls a tool or is a tool's answer; tool turns are not read")
    if kind in TEXT_PARTS:
        raise RowError("not a text", f"{where} has a part whose text is {given(part, 'text')}; a text is needed")
    raise RowError("image or sound", f"{where} holds a part of type {str(kind)[:40]!r}; texts alone are read")


def check_attached(values: Values) -> None:
    """Check that a row goes with no tools or images, which its words alone do not show.

    Raises:
        RowError: a column of ``ATTACHED`` holds anything.
    """
    for name, rule in ATTACHED.items():
        if _attached(values.get(name), texts=rule != "tool turn"):
            what = f"{name} holds {given(values, name)}, which goes with the prompt; texts alone are read"
            raise RowError(rule, what)


def _attached(value: object, *, texts: bool) -> bool:
    """Return whether a cell holds anything, as objects or JSON of them, or as a text (the name of a file)."""
    value = literal(value) if isinstance(value, str) else value
    entries = list(value.values()) if isinstance(value, Mapping) else value
    return any(entry is not None for entry in entries) if isinstance(entries, list) else texts and bool(value)


def prompt_of(conversation: Sequence[Turn]) -> Prompt:
    """Return the prompt whose text is the last turn and whose history are the turns before it.

    Raises:
        RowError: turns after an optional system turn that do not alternate from user to user.
    """
    opening = 1 if conversation and conversation[0].role == "system" else 0
    for number, turn in enumerate(conversation[opening:]):
        expected = "assistant" if number % 2 else "user"
        if turn.role != expected:
            what = f"turn {opening + number + 1} is of role {turn.role!r}; {expected!r} is needed"
            raise RowError("wrong role", what)
    if len(conversation) == opening or conversation[-1].role != "user":
        raise RowError("wrong role", "the prompt does not end with a turn of role 'user'")
    return Prompt(conversation[-1].text, history=tuple(conversation[:-1]))


def with_system(prompt: Prompt, values: Values) -> Prompt:
    """Return the prompt under the system turn that a column of the row holds; one of its own goes before the column's.

    Raises:
        RowError: the column holds no text.
    """
    said = next((name for name in SYSTEM if values.get(name)), None)
    if said is None or (prompt.history and prompt.history[0].role == "system"):
        return prompt
    (turn,) = spoken(values, said, "system")[:1]
    if turn.role != "system":
        raise RowError("wrong role", f"{said} holds a turn of role {turn.role!r}; the system's is needed")
    return replace(prompt, id="", cluster="", history=(turn, *prompt.history)) if turn.text.strip() else prompt


def as_messages(text: str) -> Any:
    """Return the messages that a text holds as JSON, or the text."""
    value = literal(text) if text.lstrip().startswith(("[", "{")) else text
    return value if _is_said(value) else text


def _is_said(value: object) -> bool:
    """Return whether a value is a list of objects of which one is said by someone, or one message of a known speaker.

    An answer may be another JSON list or object.
    """
    if isinstance(value, Mapping):
        pairs = (value.get("role"), value.get("content")), (value.get("from"), value.get("value"))
        return any(speaker(who) in ROLES and isinstance(said, str) for who, said in pairs)
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        return False
    return any("role" in entry or {"from", "value"} <= set(entry) for entry in value)


def read_cell(value: object, what: str = "cell") -> Any:
    """Return what a cell says: the messages that its text holds as JSON, any other value as it is.

    Raises:
        RowError: messages as Python prints them, which NumPy does without commas.
    """
    if isinstance(value, str) and PYTHON.fullmatch(value):
        printed = f"messages as Python prints them ({value[:12]!r}); write them as JSON, or the file as JSONL"
        raise RowError("mixed plain and chat", f"{what} holds {printed}")
    return as_messages(value) if isinstance(value, str) else value


def holds_messages(value: object) -> bool:
    """Return whether a cell holds messages, as such or as JSON text.

    Raises:
        RowError: messages as Python prints them.
    """
    said = read_cell(value)
    return bool(said) and isinstance(said, list | Mapping)


def _said_by(value: object, what: str, role: Role) -> list[Turn]:
    said = read_cell(value, what)
    if isinstance(said, str):
        return [Turn(role, whole_text(said, f"the {what}"))]
    if said and isinstance(said, list | Mapping):
        return spoken({what: said}, what, role)
    held = "missing" if said is None else f"{type(said).__name__} {str(said)[:40]!r}"
    raise RowError("not a text", f"the {what} is {held}; a text is needed")


def as_prompt(value: object, what: str = "prompt") -> Prompt:
    """Return the prompt of a text, or of messages that end with the user's turn; ``what`` names it in errors.

    Raises:
        RowError: neither, or turns that do not alternate.
    """
    return prompt_of(_said_by(value, what, "user"))


def as_answer(value: object) -> str:
    """Return the answer of a text, or of one message of the assistant's.

    Raises:
        RowError: anything else.
    """
    turns = _said_by(value, "response", "assistant")
    if [turn.role for turn in turns] != ["assistant"]:
        roles = ", ".join(turn.role for turn in turns[:5])
        raise RowError("wrong role", f"the response holds turns of {roles}; one turn of the assistant is needed")
    return turns[0].text


def without_answer(value: object) -> Any:
    """Return a transcript without the answer that it ends with: what a model is asked; other values as they are."""
    said = read_cell(value, "conversation")
    return said[:-1] if answer_of(said) is not None else value


def answer_of(value: object) -> Any:
    """Return the assistant's message that a transcript ends with, as a list of one, or none."""
    said = read_cell(value, "conversation")
    if not isinstance(said, list) or not said or not isinstance(said[-1], Mapping):
        return None
    return said[-1:] if ROLES.get(speaker(_first(said[-1], SPEAKERS))) == "assistant" else None


def written(prompt: Prompt) -> str | list[dict[str, str]]:
    """Return a prompt as tables hold it: its text, or with a history its messages; ``as_prompt`` reads it back."""
    if not prompt.history:
        return prompt.text
    turns = (*prompt.history, Turn("user", prompt.text))
    return [{"role": turn.role, "content": turn.text} for turn in turns]


TRANSCRIPT_MARKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
LAST_ANSWER = "\n\nAssistant:"


def marked_turns(said: str, marker: re.Pattern[str]) -> tuple[str, list[Turn]]:
    """Return what a text says before the first marker of a speaker, and the turns that the markers part."""
    opening, *parts = marker.split(said)
    return opening, [Turn(ROLES[speaker(who)], words) for who, words in zip(parts[::2], parts[1::2], strict=True)]


def transcript_turns(transcript: str) -> list[Turn]:
    """Return the turns of a transcript, whose last one is the answer.

    Turns of one speaker in a row are one turn, joined by a blank line, so that speakers alternate.

    Raises:
        RowError: no Assistant marker, words before the first marker, or a turn of the Human after the answer.
    """
    start = transcript.rfind(LAST_ANSWER)
    if start < 0:
        raise RowError("wrong role", "a transcript has no turn of the Assistant; '\\n\\nAssistant:' marks it")
    answer = transcript[start + len(LAST_ANSWER) :]
    if (after := TRANSCRIPT_MARKER.search(answer)) is not None and after.start():
        raise RowError("wrong role", "a transcript ends with a turn of the Human; the Assistant's is needed")
    opening, said = marked_turns(transcript[:start], TRANSCRIPT_MARKER)
    if opening.strip():
        raise RowError("wrong role", f"a transcript opens with {opening.strip()[:40]!r}; '\\n\\nHuman:' is needed")
    joined: list[Turn] = []
    for turn in (*said, Turn("assistant", answer)):
        before = f"{joined.pop().text}\n\n" if joined and joined[-1].role == turn.role else ""
        joined.append(Turn(turn.role, f"{before}{turn.text.strip()}".strip()))
    return joined


def said(prompt: Prompt) -> tuple[str, ...]:
    """Return the texts of a prompt's turns, its own last."""
    return (*(turn.text for turn in prompt.history), prompt.text)
