"""Preference rows of TRL as lists of messages, with the prompt in a column or as the turns both lists open with."""

from collections.abc import Sequence

from dualign.data.formats.cells import Values
from dualign.data.formats.rows import Format
from dualign.data.formats.turns import compared, turns
from dualign.data.preferences import Fault, PreferenceRow

PAIR = ("chosen", "rejected")


def recognise_implicit(rows: Sequence[Values]) -> bool:
    """Return whether the first row that holds texts or messages holds messages."""
    kinds = (type(row.get("chosen")) for row in rows)
    return next((kind is list for kind in kinds if kind in (str, list)), False)


def recognise_explicit(rows: Sequence[Values]) -> bool:
    """Return whether the prompt is a list of messages too; beside whole transcripts a plain one only repeats them."""
    return recognise_implicit(rows) and any(isinstance(row.get("prompt"), list) for row in rows)


def read_explicit(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of a conversation and two answers to it; turns that the answers share belong to the prompt."""
    prompt = turns(values, "prompt")
    chosen, rejected = (prompt + turns(values, name) for name in PAIR)
    return compared(line, chosen, rejected)


def read_implicit(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of two conversations that differ in their last message."""
    chosen, rejected = (turns(values, name) for name in PAIR)
    return compared(line, chosen, rejected)


TRL_CHAT_EXPLICIT = Format(
    "trl-chat-explicit",
    "pairs of messages after a conversation, chosen first",
    ("prompt", *PAIR),
    read_explicit,
    recognise_explicit,
)
TRL_CHAT_IMPLICIT = Format(
    "trl-chat-implicit",
    "pairs of conversations, chosen first; their common turns are the prompt",
    PAIR,
    read_implicit,
    recognise_implicit,
    options=("prompt",),
)
