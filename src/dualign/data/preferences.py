"""Preference data: prompts with labelled answers, what can be wrong with a row, and what a format of files is."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dualign.data.cells import RowError, Values
from dualign.data.table_files import Row
from dualign.data.tables import Table
from dualign.data.turns import SYSTEM
from dualign.errors import DataError
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
    raw: Row = field(default=Row(0, {}), compare=False, repr=False)
    """Its place in the file, and its cells under the names and of the types that the format reads them by."""


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
    format: str = ""
    """Name in the table of formats; empty: none was recognised."""
    rows: tuple[PreferenceRow, ...] = ()
    faults: tuple[Fault, ...] = ()
    total: int = 0
    """Rows of the file, read or not."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column of the file by what it was read as."""


UNREADABLE = ("not a text", "mixed plain and chat", "lone surrogate", "wrong role", "tool turn", "image or sound")
"""Drops that say, where no row at all is left, that the file is none that can be read: ``no readable row``."""
NO_PROMPT = "no common prompt"  # of one row: that row is left out; of all rows: the file is refused
ERRORS = ("missing column", "refused format", NO_PROMPT, "several prompts", "no readable row", "mixed label types",
          "id out of range", "score not a number")  # fmt: skip
DROPS = (*UNREADABLE, "empty prompt", "empty response", "parting transcripts", "identical pair")
READING_RULES = {**dict.fromkeys(ERRORS, "error"), **dict.fromkeys(DROPS, "drop")}
"""Rules that the reader itself applies: ``error`` refuses the file, ``drop`` leaves the row out and counts it.

What is wrong with the words of one row is that row's own fault; what is wrong with a label makes its column doubtful.
"""


class PreferenceError(DataError):
    """A preference file that cannot be used.

    ``faults`` holds every row that is to blame, ``format`` the name of the file's format; empty: none was recognised.
    """

    def __init__(self, message: str, faults: tuple[Fault, ...], format: str = "") -> None:
        super().__init__(message)
        self.faults = faults
        self.format = format


def refusal(table: Table, faults: tuple[Fault, ...], format: str = "") -> PreferenceError:
    """Return the error of a file with these faults: the first one in words, the others as a number."""
    others = f" (and {len(faults) - 1} more rows)" if len(faults) > 1 else ""
    return PreferenceError(f"{table.place(faults[0].line)}: {faults[0].what}{others}", faults, format)


RowReading = Callable[[Values], PreferenceRow]
Recognition = Callable[[Sequence[Values]], bool]


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
    """From the cells of one row; its line may be left at 0. Raises ``RowError``."""
    recognise: Recognition = any_rows
    """Whether rows that have the needed columns are of this format."""
    options: tuple[str, ...] = ()
    """Further columns that are read where they are there."""
    more: tuple[str, ...] = ()
    """Patterns of the names of further columns that are read."""
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
        own = name in (*self.needs, *self.options) or any(fnmatch.fnmatchcase(name, more) for more in self.more)
        return own or (self.systems and name in SYSTEM)

    def labels(self, name: str) -> bool:
        """Return whether a column holds a label: read, and no text, so that CSV's texts stand for something else."""
        return self.reads(name) and name not in (*self.texts, *self.either, *SYSTEM)


def made(
    prompt: Prompt, answers: Sequence[Answer], *, better: int | None = None, safer: int | None = None
) -> PreferenceRow:
    """Return the row.

    Raises:
        RowError: the prompt or an answer is blank.
    """
    if not prompt.text.strip():
        raise RowError("empty prompt", "the prompt is blank")
    for number, answer in enumerate(answers, start=1):
        if not answer.text.strip():
            raise RowError("empty response", f"answer {number} of {len(answers)} is blank")
    return PreferenceRow(0, prompt, tuple(answers), better, safer)


def grouped(rows: Iterable[PreferenceRow]) -> tuple[PreferenceRow, ...]:
    """Return one row of K >= 2 distinct answers for each prompt of single-answer rows, in order of appearance.

    Our choice: C-DPO (2024) trains on BeaverTails, which has no pairs, without saying how they were formed. Prompts
    are the same where their ids are. An answer that several people flagged counts once, unsafe unless most flagged it
    safe, with the kinds of harm that at least half of them saw; its rewards count by their mean. ``safer`` is set where
    exactly one answer is safe, ``better`` where one alone is desirable (KTO) or has the highest reward (HelpSteer).
    Prompts with a single answer are left out; rows that compare answers already are passed on.
    """
    compared: list[PreferenceRow] = []
    singles: dict[str, list[PreferenceRow]] = {}
    for row in rows:
        (compared if len(row.answers) > 1 else singles.setdefault(row.prompt.id, [])).append(row)
    groups = [_group(members) for members in singles.values()]
    return tuple(sorted(compared + [row for row in groups if len(row.answers) > 1], key=lambda row: row.line))


def _group(members: Sequence[PreferenceRow]) -> PreferenceRow:
    opinions: dict[str, list[Answer]] = {}
    for row in members:
        opinions.setdefault(row.answers[0].text, []).append(row.answers[0])
    answers = tuple(_settled(judged) for judged in opinions.values())
    safe = [position for position, answer in enumerate(answers) if answer.safe]
    flagged = all(answer.safe is not None for answer in answers)
    safer = safe[0] if flagged and len(safe) == 1 else None
    return replace(members[0], answers=answers, safer=safer, better=_better(answers))


def _better(answers: Sequence[Answer]) -> int | None:
    """Return the one answer that is desirable, or that has the highest reward; none where several are, or none is."""
    for merits in ([answer.desirable for answer in answers], [answer.reward for answer in answers]):
        known = [merit for merit in merits if merit is not None]
        if len(known) == len(answers):
            best = [place for place, merit in enumerate(known) if merit == max(known)]
            return best[0] if len(best) == 1 else None
    return None


def _settled(judged: Sequence[Answer]) -> Answer:
    """Return one answer for several opinions of it."""
    severities = sorted(answer.severity for answer in judged if answer.severity is not None)
    rewards = [answer.reward for answer in judged if answer.reward is not None]
    seen = [category for answer in judged for category in answer.categories]
    return replace(
        judged[0],
        safe=_most(answer.safe for answer in judged),
        desirable=_most(answer.desirable for answer in judged),
        reward=sum(rewards) / len(rewards) if rewards else None,
        severity=severities[len(severities) // 2] if severities else None,
        categories=frozenset(category for category in seen if 2 * seen.count(category) >= len(judged)),
    )


def _most(flags: Iterable[bool | None]) -> bool | None:
    """Return whether most of the flags that are given are true; none: none is given."""
    given = [flag for flag in flags if flag is not None]
    return 2 * sum(given) > len(given) if given else None
