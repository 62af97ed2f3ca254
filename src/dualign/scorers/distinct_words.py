"""log(1 + number of distinct words): says more, and cannot be gained by repetition."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from dualign.records import FloatArray, Prompt
from dualign.scorers.protocol import Direction
from dualign.scorers.spec import ScorerSpec, Setting, revision_of


class DistinctWordsSpec(ScorerSpec):
    """Keys of ``kind: distinct-words``."""

    min_letters: int = Field(default=4, ge=1)
    """Shorter words do not count: most are articles and prepositions."""


@dataclass(frozen=True, slots=True)
class DistinctWordsScorer:
    """Counts distinct words, on a log scale."""

    direction: Direction
    min_letters: int = 4

    @property
    def id(self) -> str:
        """Return the kind and the least number of letters."""
        return f"distinct-words({self.min_letters})"

    @property
    def revision(self) -> str:
        """Return a hash of the settings."""
        return revision_of(kind="distinct-words", min_letters=self.min_letters)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:  # noqa: ARG002
        """Return shape ``[response]``: log(1 + distinct words of at least ``min_letters`` letters)."""
        word = re.compile(rf"[^\W\d_]{{{self.min_letters},}}")
        return np.log1p([len(set(word.findall(response.lower()))) for response in responses])


def build(spec: DistinctWordsSpec, setting: Setting) -> DistinctWordsScorer:
    """Return the scorer that ``spec`` describes."""
    return DistinctWordsScorer(setting.direction, spec.min_letters)
