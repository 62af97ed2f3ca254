"""Conversations: messages to turns, turns to a prompt with its history, two transcripts to a pair."""

from collections.abc import Mapping, Sequence
from typing import Literal

from dualign.data.formats.cells import Values, given
from dualign.data.formats.faults import RowError
from dualign.data.formats.rows import made
from dualign.data.preferences import Answer, Fault, PreferenceRow
from dualign.data.sources.rows import encodable
from dualign.records import Prompt, Turn

Role = Literal["system", "user", "assistant"]
ROLES: Mapping[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}


def turns(values: Values, name: str, *, text_key: str = "content", roles: Mapping[str, Role] = ROLES) -> list[Turn]:
    """Return the turns of a column that holds messages ``{"role": ..., text_key: ...}``.

    Raises:
        RowError: no list of messages, an unknown role, or a message without a text.
    """
    messages = values.get(name)
    if not isinstance(messages, list):
        rule = "mixed plain and chat" if isinstance(messages, str) else "not a text"
        rule = rule if name in values else "missing column"
        raise RowError(rule, f"{name} is {given(values, name)}; a list of messages is needed")
    if not messages:
        raise RowError("not a text", f"{name} holds no message; one at least is needed")
    return [
        _turn(message, f"message {number} of {name}", text_key, roles) for number, message in enumerate(messages, 1)
    ]


def _turn(message: object, where: str, text_key: str, roles: Mapping[str, Role]) -> Turn:
    if not isinstance(message, Mapping):
        raise RowError("not a text", f'{where} is no object; {{"role": ..., "{text_key}": ...}} is needed')
    role, said = message.get("role"), message.get(text_key)
    if not isinstance(role, str) or role not in roles:
        raise RowError("wrong role", f"{where} has the role {given(message, 'role')}; known: {', '.join(roles)}")
    if not isinstance(said, str):
        raise RowError("not a text", f"{where} has the {text_key} {given(message, text_key)}; a text is needed")
    if not encodable(said):
        raise RowError("lone surrogate", f"{where} holds half of a character (a lone surrogate)")
    return Turn(roles[role], said)


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
