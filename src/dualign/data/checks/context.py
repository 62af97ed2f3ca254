"""What the rules may know besides the rows: the measure of length, the limit, and the lengths taken once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dualign.data.checks.measure import WORDS, Measure, said
from dualign.data.preferences import Fault, PreferenceRow

MAX_LENGTH = 512


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of one row."""

    prompt: int
    """All turns together, without what a template adds."""
    answers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Context:
    """Settings of a check, and the lengths of its rows by their line."""

    max_length: int = MAX_LENGTH
    """Tokens that prompt and answer may have together; what is beyond is cut off the end."""
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
    prompt = sum(measure.tokens(text) for text in said(row.prompt))
    return Lengths(prompt, tuple(measure.tokens(answer.text) for answer in row.answers))


def prepared(rows: Sequence[PreferenceRow], *, max_length: int, measure: Measure) -> Context:
    """Return the context in which these rows are checked."""
    return Context(max_length, measure, {row.line: measured(row, measure) for row in rows})
