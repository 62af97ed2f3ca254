"""What every format's reading of a row ends with, and what a format is."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dualign.data.formats.cells import Values
from dualign.data.preferences import Answer, Fault, PreferenceRow
from dualign.records import Prompt

RowReading = Callable[[Values, int], PreferenceRow | Fault]
SYSTEM = ("system", "system_prompt", "system_message")
"""Columns that hold a system turn, whatever the format; the first that says anything counts."""


def any_rows(_rows: Sequence[Values]) -> bool:
    """Return true: the columns alone tell this format from the others."""
    return True


@dataclass(frozen=True, slots=True)
class Format:
    """One format of preference files."""

    name: str
    says: str
    """What the file then holds, in a few words."""
    needs: tuple[str, ...]
    """Columns that some row must have."""
    read_row: RowReading
    """From the cells of one row and its line; raises ``RowError``."""
    recognise: Callable[[Sequence[Values]], bool] = any_rows
    """Whether rows that have the needed columns are of this format."""
    options: tuple[str, ...] = ()
    """Further columns that are read where they are there."""
    more: re.Pattern[str] | None = None
    """Names of further columns that are read."""
    texts: tuple[str, ...] = ()
    """Columns that hold texts alone; in CSV columns of labels hold a flag, a number or JSON."""
    either: tuple[str, ...] = ()
    """Columns that hold texts in one file and messages in another, but never both in one."""
    systems: bool = True
    """Whether a column of a system turn is read as that turn; false: the format has a place of its own for it."""
    refusal: str = ""
    """Why files of this format are refused, and what to use instead; empty: they are read."""

    def reads(self, name: str) -> bool:
        """Return whether the format reads a column; those it does not read become columns of the prompt."""
        own = name in self.needs or name in self.options or bool(self.more and self.more.fullmatch(name))
        return own or (self.systems and name in SYSTEM)

    def labels(self, name: str) -> bool:
        """Return whether a column holds a label: read, and no text, so that CSV's texts stand for something else."""
        return self.reads(name) and name not in (*self.texts, *self.either, *SYSTEM)


def made(
    line: int, prompt: Prompt, answers: Sequence[Answer], *, better: int | None = None, safer: int | None = None
) -> PreferenceRow | Fault:
    """Return the row, or the fault of a row in which the prompt or an answer is blank."""
    if not prompt.text.strip():
        return Fault("empty prompt", line, "the prompt is blank")
    for number, answer in enumerate(answers, start=1):
        if not answer.text.strip():
            return Fault("empty response", line, f"answer {number} of {len(answers)} is blank")
    return PreferenceRow(line, prompt, tuple(answers), better, safer)


def refused(_values: Values, line: int) -> Fault:
    """Return the fault of a row whose format is refused as a whole."""
    return Fault("refused format", line, "rows of this format are not read")
