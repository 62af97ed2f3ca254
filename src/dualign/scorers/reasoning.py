"""Answers without their reasoning: what scorers see under ``sampling.reasoning: strip``."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dualign.records import FloatArray, Prompt
from dualign.scorers.protocol import Direction, Scorer, words_read

OPENING, CLOSING = "<think>", "</think>"
_BLOCK = re.compile(f"{OPENING}.*?(?:{CLOSING}|\\Z)", re.DOTALL)


def without_reasoning(text: str, *, opened: bool = False) -> str:
    """Return ``text`` without its ``<think>…</think>`` parts; one that is not closed reaches to the end.

    What stands outside of them is kept, before and behind: an answer cannot hide its first words from a scorer. A
    closing tag that nothing in the text opens was opened by the prompt; ``opened`` says that the prompt always does.
    """
    first_close, first_open = text.find(CLOSING), text.find(OPENING)
    if first_close >= 0 and not 0 <= first_open < first_close:
        text = text[first_close + len(CLOSING) :].lstrip()
    elif opened and first_close < 0:
        return ""
    left = _BLOCK.sub("", text)
    return left.lstrip() if text.lstrip().startswith(OPENING) else left


@dataclass(frozen=True, slots=True)
class Unreasoned:
    """A scorer that sees answers without their reasoning."""

    scorer: Scorer
    opened: bool
    """Whether the prompt opens the reasoning."""

    @property
    def id(self) -> str:
        """Return the inner scorer's id."""
        return self.scorer.id

    @property
    def revision(self) -> str:
        """Return the inner scorer's revision; what it is shown is said by the setting, which is part of the claim."""
        return self.scorer.revision

    @property
    def direction(self) -> Direction:
        """Return the inner scorer's direction."""
        return self.scorer.direction

    @property
    def words_read(self) -> int | None:
        """Return how many words of what is left the inner scorer reads."""
        return words_read(self.scorer)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[response]`` scores of what is left of each response."""
        return self.scorer(prompts, [without_reasoning(text, opened=self.opened) for text in responses])
