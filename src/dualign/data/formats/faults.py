"""What reading a preference file can find wrong, and the errors that say so."""

from dualign.data.preferences import Fault
from dualign.errors import DataError

READING_RULES = {
    "missing column": "error",
    "refused format": "error",
    "no common prompt": "error",
    "several prompts": "error",
    "no readable row": "error",
    "mixed label types": "error",
    "id out of range": "error",
    "score not a number": "error",
    "not a text": "drop",
    "mixed plain and chat": "drop",
    "lone surrogate": "drop",
    "wrong role": "drop",
    "tool turn": "drop",
    "image or sound": "drop",
    "empty prompt": "drop",
    "empty response": "drop",
    "parting transcripts": "drop",
    "identical pair": "drop",
}
"""Rules that the reader itself applies: ``error`` refuses the file, ``drop`` leaves the row out and counts it.

What is wrong with the words of one row is that row's own fault; what is wrong with a label makes its column doubtful.
"""
UNREADABLE = frozenset(
    {"not a text", "mixed plain and chat", "lone surrogate", "wrong role", "tool turn", "image or sound"}
)
"""Drops that say, where no row at all is left, that the file is none that can be read: ``no readable row``."""


class RowError(Exception):
    """One row breaks a rule of the reader, which adds the file and the line."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(what)
        self.rule = rule
        self.what = what


class PreferenceError(DataError):
    """A preference file that cannot be used.

    ``faults`` holds every row that is to blame, ``format`` the name of the file's format; empty: none was recognised.
    """

    def __init__(self, message: str, faults: tuple[Fault, ...], format: str = "") -> None:
        super().__init__(message)
        self.faults = faults
        self.format = format


def refusal(where: str, faults: tuple[Fault, ...], format: str = "") -> PreferenceError:
    """Return the error of a file with these faults: the first one in words, the others as a number."""
    first = faults[0]
    others = f" (and {len(faults) - 1} more rows)" if len(faults) > 1 else ""
    return PreferenceError(f"{where}: line {first.line}: {first.what}{others}", faults, format)
