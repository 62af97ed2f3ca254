"""Anthropic HH-RLHF: two whole transcripts that should differ in the last answer alone."""

import re
from collections.abc import Sequence

from dualign.data.formats.cells import Values, text
from dualign.data.formats.faults import RowError
from dualign.data.formats.rows import Format
from dualign.data.formats.turns import Role, compared
from dualign.data.preferences import Fault, PreferenceRow
from dualign.records import Turn

MARKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
LAST = "\n\nAssistant:"
ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
COLUMNS = ("chosen", "rejected")


def recognise(rows: Sequence[Values]) -> bool:
    """Return whether any row holds a transcript, and none a prompt of its own."""
    return not any("prompt" in row for row in rows) and any(_transcript(row.get("chosen")) for row in rows)


def _transcript(value: object) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("Human:") and LAST in value


def transcript_turns(transcript: str) -> list[Turn]:
    """Return the turns of a transcript, whose last one is the answer.

    Turns of one speaker in a row are one turn, joined by a blank line, so that speakers alternate.

    Raises:
        RowError: no Assistant marker, words before the first marker, or a turn of the Human after the answer.
    """
    start = transcript.rfind(LAST)
    if start < 0:
        raise RowError("wrong role", "a transcript has no turn of the Assistant; '\\n\\nAssistant:' marks it")
    answer = transcript[start + len(LAST) :]
    if (after := MARKER.search(answer)) is not None and after.start():
        raise RowError("wrong role", "a transcript ends with a turn of the Human; the Assistant's is needed")
    opening, *parts = MARKER.split(transcript[:start])
    if opening.strip():
        raise RowError("wrong role", f"a transcript opens with {opening.strip()[:40]!r}; '\\n\\nHuman:' is needed")
    said = [(ROLES[marker], words.strip()) for marker, words in zip(parts[::2], parts[1::2], strict=True)]
    said.append(("assistant", answer.strip()))
    turns: list[Turn] = []
    for role, words in said:
        if turns and turns[-1].role == role:
            turns[-1] = Turn(role, f"{turns[-1].text}\n\n{words}".strip())
        else:
            turns.append(Turn(role, words))
    return turns


def read_row(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of two transcripts; their common turns are the prompt with its history."""
    chosen, rejected = (transcript_turns(text(values, name)) for name in COLUMNS)
    return compared(line, chosen, rejected)


HH_RLHF = Format("hh-rlhf", "pairs of transcripts, chosen first", COLUMNS, read_row, recognise, texts=COLUMNS)
