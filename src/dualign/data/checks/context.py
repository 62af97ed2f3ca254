"""What the rules may know besides the rows: the measure of length, the limit, and the lengths taken once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dualign.data.checks.measure import WORDS, Measure
from dualign.data.preferences import Fault, PreferenceRow
from dualign.errors import DataError

MAX_LENGTH = 512


@dataclass(frozen=True, slots=True)
class Limits:
    """Tokens that fit, and what becomes of an answer that does not."""

    together: int = MAX_LENGTH
    """Tokens that prompt and answer may have together."""
    prompt: int | None = None
    """Tokens that the prompt may have; none: what fits into ``together``."""
    answer: int | None = None
    """Tokens that an answer may have; none: what the prompt leaves of ``together``."""
    drops_long: bool = False
    """Whether a row whose answers do not fit is left out; otherwise their ends are cut off."""

    @property
    def longest_prompt(self) -> int:
        """Return the tokens that a prompt may have."""
        return self.together if self.prompt is None else min(self.prompt, self.together)

    def room(self, prompt: int) -> int:
        """Return the tokens that an answer to a prompt of so many tokens may have; 0 or less: it has no room."""
        left = self.together - prompt
        return left if self.answer is None else min(self.answer, left)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of one row."""

    prompt: int
    """All turns together, with what a template adds where there is one."""
    answers: tuple[int, ...]
    refused: str = ""
    """What the template says of turns that it has no place for; empty: it takes them."""


@dataclass(frozen=True, slots=True)
class Context:
    """Settings of a check, and the lengths of its rows by their line."""

    limits: Limits = field(default_factory=Limits)
    measure: Measure = WORDS
    lengths: Mapping[int, Lengths] | None = None

    def of(self, row: PreferenceRow) -> Lengths:
        """Return the lengths of a row."""
        known = None if self.lengths is None else self.lengths.get(row.line)
        return known or measured(row, self.measure)


Check = Callable[[Sequence[PreferenceRow], Context], list[Fault]]
"""A rule, or a few of one kind: the rows of a check, each with a line of its own -> what is wrong with them."""


def measured(row: PreferenceRow, measure: Measure) -> Lengths:
    """Return the lengths of a row, every text cut once."""
    answers = tuple(measure.answer(answer.text) for answer in row.answers)
    try:
        return Lengths(measure.prompt(row.prompt), answers)
    except DataError as error:
        return Lengths(0, answers, refused=str(error))


def prepared(rows: Sequence[PreferenceRow], *, limits: Limits, measure: Measure) -> Context:
    """Return the context in which these rows are checked."""
    return Context(limits, measure, {row.line: measured(row, measure) for row in rows})
