"""Share of distinct bigrams among a response's bigrams: low where a model repeats itself."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dualign.records import FloatArray, Prompt
from dualign.scorers.protocol import Direction
from dualign.scorers.spec import ScorerSpec, Setting, revision_of

WORD = re.compile(r"\w+")


class DistinctBigramsSpec(ScorerSpec):
    """``kind: distinct-bigrams`` has no keys."""


@dataclass(frozen=True, slots=True)
class DistinctBigramsScorer:
    """distinct-2 of Li et al. 2016 (section 5), for each response by itself."""

    direction: Direction

    @property
    def id(self) -> str:
        """Return the kind."""
        return "distinct-bigrams"

    @property
    def revision(self) -> str:
        """Return a hash of the kind and of what a word is."""
        return revision_of(kind="distinct-bigrams", word=WORD.pattern)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:  # noqa: ARG002
        """Return shape ``[response]`` shares in [0, 1]; 0 for fewer than two words."""
        return np.array([share(response) for response in responses], dtype=np.float64)


def share(response: str) -> float:
    """Return distinct bigrams / bigrams, in lower case; 0 where there is no bigram."""
    words = WORD.findall(response.lower())
    bigrams = list(zip(words, words[1:], strict=False))
    return len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def build(spec: DistinctBigramsSpec, setting: Setting) -> DistinctBigramsScorer:  # noqa: ARG001
    """Return the scorer."""
    return DistinctBigramsScorer(setting.direction)
