"""How a prompt with its history and a response are written into one text for a judge that reads texts."""

import re
from collections.abc import Sequence

from dualign.records import Turn

_SLOT = re.compile(r"\{(prompt|response)\}")


def conversation_text(history: Sequence[Turn], text: str) -> str:
    """Return the prompt ``text``; after other turns, the whole conversation, each turn led by its speaker."""
    if not history:
        return text
    return "\n".join(f"{turn.role}: {turn.text}" for turn in (*history, Turn("user", text)))


def fill(wording: str, *, prompt: str, response: str) -> str:
    """Return ``wording`` with {prompt} and {response} replaced in one pass; every other brace stays.

    A "{response}" inside a prompt is text, and no attribute of anything can be named.
    """
    texts = {"prompt": prompt, "response": response}
    return _SLOT.sub(lambda slot: texts[slot[1]], wording)
