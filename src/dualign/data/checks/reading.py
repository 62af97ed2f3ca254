"""What came of a file that is checked; and how long its texts are, in tokens or guessed from words."""

import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dualign.data.formats.table import FORMATS, preference_file, preference_table
from dualign.data.preferences import Fault, PreferenceError, PreferenceFile, PreferenceRow
from dualign.data.table_files import EMPTY, TableError
from dualign.data.tables import Source, Table
from dualign.data.turns import said
from dualign.errors import DataError
from dualign.records import Prompt

TOKENS_A_WORD = 1.3


@dataclass(frozen=True, slots=True)
class Measure:
    """A way to cut a text into pieces of so many tokens each."""

    name: str
    pieces: Callable[[str], Sequence[Hashable]]
    tokens_a_piece: float = 1.0
    bos: str | None = None
    """The text of the token that the tokenizer puts first; none: it puts none there, or is not known."""
    special: frozenset[str] = frozenset()
    """Texts of the tokenizer's special tokens."""
    closing: int = 0
    """Tokens that close an answer; counted to its length."""
    template: Callable[[Prompt], Sequence[Hashable]] | None = None
    """The tokens of a whole prompt; raises ``DataError`` for turns that it has no place for. None: the sum of the
    turns' texts."""

    def tokens(self, text: str) -> int:
        """Return the length of a text in tokens, rounded up."""
        return math.ceil(len(self.pieces(text)) * self.tokens_a_piece - 1e-9)

    def prompt(self, prompt: Prompt) -> int:
        """Return the length of a prompt in tokens, all turns together.

        Raises:
            DataError: the template refuses its turns.
        """
        if self.template is not None:
            return len(self.template(prompt))
        return sum(self.tokens(text) for text in said(prompt))

    def answer(self, text: str) -> int:
        """Return the length of an answer in tokens, with those that close it."""
        return self.tokens(text) + self.closing

    def cut(self, text: str, tokens: int) -> tuple[Hashable, ...]:
        """Return the whole pieces of a text that fit into ``tokens``."""
        return tuple(self.pieces(text)[: max(0, math.floor(tokens / self.tokens_a_piece + 1e-9))])


WORDS = Measure(f"words x {TOKENS_A_WORD}", str.split, TOKENS_A_WORD)
"""A guess for English text; about right for most tokenizers, far off for scripts without spaces."""


def of_tokenizer(tokenizer: Any, name: str) -> Measure:
    """Return the measure of a Hugging Face tokenizer; texts are cut without the tokens that it adds itself."""

    def pieces(text: str) -> Sequence[Hashable]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    whole: list[int] = tokenizer("a", verbose=False)["input_ids"]
    added = tokenizer.bos_token_id is not None and whole[:1] == [tokenizer.bos_token_id]  # many name one and add none
    special = frozenset(token for token in tokenizer.all_special_tokens)
    return Measure(name, pieces, bos=tokenizer.bos_token if added else None, special=special)


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

    limits: Limits
    measure: Measure
    lengths: Mapping[int, Lengths]

    def of(self, row: PreferenceRow) -> Lengths:
        """Return the lengths of a row."""
        return self.lengths[row.line]


RowRule = Callable[[PreferenceRow, Context], str]
"""A rule of single rows: what was found; empty: nothing is wrong."""


def measured(row: PreferenceRow, measure: Measure) -> Lengths:
    """Return the lengths of a row, every text cut once."""
    answers = tuple(measure.answer(answer.text) for answer in row.answers)
    try:
        return Lengths(measure.prompt(row.prompt), answers)
    except DataError as error:
        return Lengths(0, answers, refused=str(error))


WHOLE_FILE = 0
"""The line of a fault that no single line is to blame for."""

# Columns that published data sets of these formats bring along, and those that name scorers and splits.
FAMILIAR = re.compile(
    r"split|scorer|revision|template|id|(?:prompt_|query_)id|category(?:_id)?|image"
    r"|prompt_source|response(?:_\d)?_source|(?:response_\d_)?sha256|(?:is_)?response_\d_\w+"
)


def read(source: Source, *, format: str | None = None, columns: Mapping[str, str] | None = None) -> PreferenceFile:
    """Return the data with all their faults; rows that refuse the file are set aside, so that the others are seen too.

    Raises:
        MissingError: there is no such file, or it cannot be opened.
        UsageError: an unknown format, or a column that no format reads.
    """
    try:
        table = preference_table(source)
    except TableError as error:
        what = "the file has no rows" if error.rule == EMPTY else error.what
        name = str(source) if isinstance(source, str | Path) else error.name
        return PreferenceFile(name, faults=(Fault(error.rule, error.line, what),))
    unread = PreferenceFile(table.name, total=len(table.rows))
    try:
        return _with_extra(table, preference_file(table, format=format, columns=columns))
    except PreferenceError as error:
        unread = replace(unread, format=error.format, faults=error.faults)
    except DataError as error:  # a column that --columns names and the file lacks
        fault = Fault("missing column", WHOLE_FILE, str(error).removeprefix(f"{table.name}: "))
        return replace(unread, faults=(fault,))
    blamed = {fault.line for fault in unread.faults}
    others = replace(table, rows=[raw for raw in table.rows if raw.line not in blamed])
    if not others.rows:
        return unread
    try:
        found = preference_file(others, format=format, columns=columns)
    except DataError:  # what is wrong with the others is wrong with the file, and has been said
        return unread
    return _with_extra(table, replace(found, faults=(*unread.faults, *found.faults), total=unread.total))


def _with_extra(table: Table, file: PreferenceFile) -> PreferenceFile:
    """Return the file with the fault of having columns that its format does not know, if it has any."""
    known = FORMATS[file.format]
    read_from = {name for column in file.columns.values() for name in (column, column.split(".")[0])}
    free = [name for name in table.columns if name not in read_from and not known.reads(name)]
    extra = [name for name in free if not FAMILIAR.fullmatch(name)]
    if not extra:
        return file
    names = ", ".join(map(repr, extra[:8])) + (", ..." if len(extra) > 8 else "")
    line = next(raw.line for raw in table.rows if extra[0] in raw.values)
    fault = Fault("extra columns", line, f"{known.name} has no {names}")
    return replace(file, faults=(*file.faults, fault))
