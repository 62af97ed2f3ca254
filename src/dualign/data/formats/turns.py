"""Conversations: messages of any dialect to turns, turns to a prompt with its history, two transcripts to a pair."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from dualign.data.formats.source import SYSTEM, Format, RowError, Values, given, literal, made
from dualign.data.preferences import Answer, Fault, PreferenceRow
from dualign.data.table_files import Row, encodable
from dualign.records import Prompt, Turn

Role = Literal["system", "user", "assistant"]
ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "ai": "assistant",
}
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
    words = "".join(_part(part, where) for part in parts)
    if not encodable(words):
        raise RowError("lone surrogate", f"{where} holds half of a character (a lone surrogate)")
    return words


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
            raise RowError(
                "wrong role", f"turn {opening + number + 1} is of role {turn.role!r}; {expected!r} is needed"
            )
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


def compared(line: int, chosen: Sequence[Turn], rejected: Sequence[Turn]) -> PreferenceRow | Fault:
    """Return the row of two transcripts that differ in their last turn, or the fault of two that part before it.

    Raises:
        RowError: a transcript that does not end with the assistant, or whose prompt is no conversation.
    """
    for transcript, name in ((chosen, "chosen"), (rejected, "rejected")):
        if transcript[-1].role != "assistant":
            raise RowError("wrong role", f"{name} ends with the role {transcript[-1].role!r}; 'assistant' is needed")
    shared = 0
    for ours, theirs in zip(chosen[:-1], rejected[:-1], strict=False):
        if ours != theirs:
            break
        shared += 1
    if shared == 0:
        return Fault("no common prompt", line, "chosen and rejected share no turn")
    if len(chosen) != shared + 1 or len(rejected) != shared + 1:
        lengths = f"{len(chosen)} and {len(rejected)} turns"
        return Fault("parting transcripts", line, f"the transcripts part at turn {shared + 1} of {lengths}")
    return made(line, prompt_of(chosen[:-1]), [Answer(chosen[-1].text), Answer(rejected[-1].text)], better=0)


TEXT, MESSAGES, PRINTED = "a text", "a list of messages", "messages as Python prints them"
PYTHON = re.compile(r"\s*\[\s*\{\s*'(?:role|content|from|value)'\s*:.*\}\s*\]\s*", re.DOTALL)
"""A list of messages as Python prints it. It is not read: NumPy prints such lists without commas, others cut them."""


def with_messages(rows: Sequence[Row], formats: Iterable[Format]) -> list[Row]:
    """Return the rows with the messages wherever a cell holds them as JSON, in any kind of file.

    Only columns that some format reads as texts or messages are looked at.
    """
    columns = {name for known in formats for name in known.either}
    return [_row(row, columns) for row in rows]


def _row(row: Row, columns: set[str]) -> Row:
    cells = {name: value for name, value in row.values.items() if name in columns and isinstance(value, str)}
    changed = {name: read for name, text in cells.items() if (read := cell(text)) is not text}
    return Row(row.line, {**row.values, **changed}) if changed else row


def cell(text: str) -> Any:
    """Return the messages that a text holds as JSON, or the text."""
    value = literal(text) if text.lstrip().startswith(("[", "{")) else text
    return value if _messages(value) else text


def _messages(value: object) -> bool:
    """Return whether a value is a list of objects of which one is said by someone, or one message of a known speaker.

    An answer may be another JSON list or object.
    """
    if isinstance(value, Mapping):
        pairs = (value.get("role"), value.get("content")), (value.get("from"), value.get("value"))
        return any(speaker(who) in ROLES and isinstance(said, str) for who, said in pairs)
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        return False
    return any("role" in entry or {"from", "value"} <= set(entry) for entry in value)


def mixed(rows: Sequence[Row], known: Format) -> dict[int, Fault]:
    """Return the faults, by line, of rows with a text in a column that holds messages in most rows, or vice versa.

    Messages as Python prints them are neither.
    """
    found: dict[int, Fault] = {}
    for name in known.either:
        kinds = [_kind(row.values.get(name)) for row in rows]
        usual = Counter(kind for kind in kinds if kind in (TEXT, MESSAGES)).most_common(1)
        for row, kind in zip(rows, kinds, strict=True):
            if kind == PRINTED:
                what = (
                    f"{name} holds messages as Python prints them ({str(row.values[name])[:12]!r}); write them as JSON"
                )
                found.setdefault(row.line, Fault("not a text", row.line, what))
            elif kind and usual and kind != usual[0][0]:
                what = f"{name} is {given(row.values, name)}; {usual[0][0]} is needed, as in most rows"
                found.setdefault(row.line, Fault("mixed plain and chat", row.line, what))
    return found


def _kind(value: object) -> str:
    """Return what a cell holds: a text, messages, or messages as Python prints them; empty: none of these."""
    if isinstance(value, str) and PYTHON.fullmatch(value):
        return PRINTED
    if isinstance(value, str) or is_parts(value):
        return TEXT
    return MESSAGES if isinstance(value, list | Mapping) and value else ""
