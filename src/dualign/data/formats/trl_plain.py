"""Preference rows of TRL as two plain texts and no more: the words that both open with are the prompt."""

from os.path import commonprefix

from dualign.data.formats.cells import Values, text
from dualign.data.formats.chat_forms import PAIR, like_a_prompt
from dualign.data.formats.faults import RowError
from dualign.data.formats.rows import Format, made
from dualign.data.preferences import Answer, Fault, PreferenceRow
from dualign.records import Prompt


def read_implicit(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of two texts whose common words are the prompt.

    The prompt ends at the last space that both texts share, and the answers keep that space: cut inside a word, the
    answers would not open with a token that a model can say. Texts without spaces need a prompt of their own.

    Raises:
        RowError: a column is called as prompts are, and then what both texts open with is none.
    """
    if names := like_a_prompt([values]):
        raise RowError("several prompts", f"{names[0]!r} may be the prompt; map it (prompt={names[0]}) or rename it")
    chosen, rejected = (text(values, name) for name in PAIR)
    if chosen == rejected:
        return Fault("identical pair", line, "chosen and rejected are the same text")
    length = shared_words(chosen, rejected)
    if not length:
        return Fault("no common prompt", line, "chosen and rejected do not open with the same words")
    return made(line, Prompt(chosen[:length]), [Answer(chosen[length:]), Answer(rejected[length:])], better=0)


def shared_words(first: str, second: str) -> int:
    """Return how many characters the two texts share up to the end of their last common whole word."""
    head = commonprefix([first, second])
    whole = head.rstrip()
    if whole != head:
        return len(whole)
    before = whole.rsplit(None, 1)
    return len(before[0]) if len(before) == 2 else 0


TRL_PLAIN_IMPLICIT = Format(
    "trl-plain-implicit",
    "pairs of texts, chosen first; the words that both open with are the prompt",
    PAIR,
    read_implicit,
    either=PAIR,
)
