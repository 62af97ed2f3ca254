"""How long texts are: in tokens of a tokenizer, or guessed from words where none is given."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

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


def said(prompt: Prompt) -> tuple[str, ...]:
    """Return the texts of a prompt's turns, its own last."""
    return (*(turn.text for turn in prompt.history), prompt.text)
