"""1 where a regular expression matches somewhere in the response, else 0."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import field_validator

from dualign.records import FloatArray, Prompt
from dualign.scorers.protocol import Direction
from dualign.scorers.spec import ScorerSpec, Setting, revision_of


class RegexSpec(ScorerSpec):
    """Keys of ``kind: regex``."""

    pattern: str
    r"""Python regular expression, searched anywhere; ``(?i)`` in front ignores case, ``\A`` binds to the start."""

    @field_validator("pattern")
    @classmethod
    def compiles(cls, pattern: str) -> str:
        """Check the pattern, so that a mistake in it is found with the config and not after the model was loaded."""
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{error}") from None
        return pattern


@dataclass(frozen=True, slots=True)
class RegexScorer:
    """Searches."""

    pattern: re.Pattern[str]
    direction: Direction

    @property
    def id(self) -> str:
        """Return the kind and the pattern."""
        return f"regex({self.pattern.pattern})"

    @property
    def revision(self) -> str:
        """Return a hash of the pattern."""
        return revision_of(kind="regex", pattern=self.pattern.pattern)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:  # noqa: ARG002
        """Return shape ``[response]`` ones and zeros."""
        return np.array([self.pattern.search(response) is not None for response in responses], dtype=np.float64)


def build(spec: RegexSpec, setting: Setting) -> RegexScorer:
    """Return the scorer that ``spec`` describes."""
    return RegexScorer(re.compile(spec.pattern), setting.direction)
