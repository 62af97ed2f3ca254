"""What every preference format is read into: prompts with labelled answers, and what was wrong on the way."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dualign.records import Prompt


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a prompt and what people or models said of it; None: nothing was said."""

    text: str
    safe: bool | None = None
    severity: int | None = None
    """0 = safe, larger is worse."""
    categories: frozenset[str] = frozenset()
    """Kinds of harm that apply."""
    reward: float | None = None
    cost: float | None = None
    """Up is bad."""
    desirable: bool | None = None
    """Whether this is an answer to give, as KTO labels single answers."""

    @property
    def negative(self) -> bool:
        """Return whether the label says that nobody should learn to give this answer: unsafe, or not desirable."""
        return self.safe is False or self.desirable is False


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """One row of a preference file: K >= 2 answers to compare, or one answer that was judged by itself."""

    line: int
    """1-based line of the file; for Parquet and JSON lists the 1-based number of the row."""
    prompt: Prompt
    answers: tuple[Answer, ...]
    better: int | None = None
    """Index of the more helpful answer."""
    safer: int | None = None
    """Index of the less harmful answer; given even where both are safe or both unsafe."""
    split: str | None = None
    """The split that the row itself names."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One rule broken by one row."""

    rule: str
    """Name of the rule, in the table of rules of ``data.checks``."""
    line: int
    what: str
    """What was found, in a few words."""


@dataclass(frozen=True, slots=True)
class PreferenceFile:
    """A file as it was read: rows that could be made out, and faults of those that could not."""

    path: str
    format: str
    """Name in the table of formats."""
    rows: tuple[PreferenceRow, ...]
    faults: tuple[Fault, ...] = ()
    total: int = 0
    """Rows of the file, read or not."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column of the file by what it was read as."""
