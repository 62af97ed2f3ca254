"""Length of a response in words, characters or tokens."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from dualign.errors import ConfigError
from dualign.protocols import Direction
from dualign.records import FloatArray, Prompt
from dualign.scorers.spec import ScorerSpec, Setting, revision_of

Unit = Literal["words", "characters", "tokens"]


class LengthSpec(ScorerSpec):
    """Keys of ``kind: length``."""

    unit: Unit = "words"
    """``tokens`` counts without special tokens, by ``tokenizer``, else by the policy's own."""
    tokenizer: str | None = None
    """Folder or id of a Hugging Face tokenizer; only with ``unit: tokens``."""
    divisor: float = Field(default=1.0, gt=0)
    """The score is length / divisor; 10 makes limits of tens of words readable."""


@dataclass(frozen=True, slots=True)
class LengthScorer:
    """Counts."""

    unit: Unit
    direction: Direction
    tokenizer: Any = None
    """With ``tokens``: a Hugging Face tokenizer."""
    divisor: float = 1.0

    @property
    def id(self) -> str:
        """Return the kind and the unit."""
        return f"length({self.unit})" if self.divisor == 1 else f"length({self.unit}/{self.divisor:g})"

    @property
    def revision(self) -> str:
        """Return a hash of the unit, the divisor and the tokenizer."""
        tokenizer = tokenizer_revision(self.tokenizer) if self.unit == "tokens" else ""
        return revision_of(kind="length", unit=self.unit, divisor=self.divisor, tokenizer=tokenizer)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:  # noqa: ARG002
        """Return shape ``[response]`` lengths / divisor; an empty response has length 0."""
        return np.array([self._count(response) for response in responses], dtype=np.float64) / self.divisor

    def _count(self, response: str) -> int:
        if self.unit == "words":
            return len(response.split())
        if self.unit == "characters":
            return len(response)
        return len(self.tokenizer(response, add_special_tokens=False)["input_ids"])


def tokenizer_revision(tokenizer: Any) -> str:
    """Return a hash of a tokenizer: of the whole fast one, else of its class and vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        text = backend.to_str()
    else:
        text = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build_length(spec: LengthSpec, setting: Setting) -> LengthScorer:
    """Return the scorer that ``spec`` describes.

    Raises:
        ConfigError: tokens are asked for and there is no tokenizer, or the reverse.
    """
    if spec.unit != "tokens":
        if spec.tokenizer is not None:
            raise ConfigError(f"scorer length: a tokenizer is given, unit is {spec.unit!r}; 'tokens' uses one")
        return LengthScorer(spec.unit, setting.direction, divisor=spec.divisor)
    if spec.tokenizer is not None:
        from dualign.scorers.encoding import load_tokenizer

        tokenizer = load_tokenizer(spec.tokenizer, setting.folder)
    elif setting.tokenizer is not None:
        tokenizer = setting.tokenizer
    else:
        raise ConfigError("scorer length: unit 'tokens' needs a tokenizer; give its folder as 'tokenizer'")
    return LengthScorer("tokens", setting.direction, tokenizer, spec.divisor)


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


def build_regex(spec: RegexSpec, setting: Setting) -> RegexScorer:
    """Return the scorer that ``spec`` describes."""
    return RegexScorer(re.compile(spec.pattern), setting.direction)


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


def build_distinct_words(spec: DistinctWordsSpec, setting: Setting) -> DistinctWordsScorer:
    """Return the scorer that ``spec`` describes."""
    return DistinctWordsScorer(setting.direction, spec.min_letters)


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


def build_distinct_bigrams(spec: DistinctBigramsSpec, setting: Setting) -> DistinctBigramsScorer:  # noqa: ARG001
    """Return the scorer."""
    return DistinctBigramsScorer(setting.direction)
