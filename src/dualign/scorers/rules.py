"""Scores that each response's own text decides by a rule: its length, a pattern, its variety."""

import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from dualign.errors import ConfigError
from dualign.protocols import Direction
from dualign.scorers.encoding import load_tokenizer
from dualign.scorers.spec import FunctionScorer, ScorerSpec, Setting, revision_of, tokenizer_revision

Unit = Literal["words", "characters", "tokens"]


def by_text(id: str, direction: Direction, value: Callable[[str], float], **facts: Any) -> FunctionScorer:
    """Return the scorer that is ``value`` of each response's text; ``facts`` are all that decides the numbers."""
    return FunctionScorer(
        id, direction, revision_of(**facts), lambda _, responses: np.array([*map(value, responses)], dtype=np.float64)
    )


class LengthSpec(ScorerSpec):
    """Keys of ``kind: length``."""

    unit: Unit = "words"
    """``tokens`` counts without special tokens, by ``tokenizer``, else by the policy's own."""
    tokenizer: str | None = None
    """Folder or id of a Hugging Face tokenizer; only with ``unit: tokens``."""
    divisor: float = Field(default=1.0, gt=0)
    """The score is length / divisor; 10 makes limits of tens of words readable."""


def build_length(spec: LengthSpec, setting: Setting) -> FunctionScorer:
    """Return the scorer of the length of a response / ``divisor``; an empty one has length 0.

    Raises:
        ConfigError: tokens are asked for and there is no tokenizer, or the reverse.
    """
    tokenizer: Any = None
    if spec.unit != "tokens" and spec.tokenizer is not None:
        raise ConfigError(f"scorer length: a tokenizer is given, unit is {spec.unit!r}; 'tokens' uses one")
    if spec.unit == "tokens":
        named = spec.tokenizer is not None
        tokenizer = load_tokenizer(str(spec.tokenizer), setting.folder) if named else setting.tokenizer
        if tokenizer is None:
            raise ConfigError("scorer length: unit 'tokens' needs a tokenizer; give its folder as 'tokenizer'")

    def count(response: str) -> float:
        if spec.unit == "words":
            return len(response.split()) / spec.divisor
        if spec.unit == "characters":
            return len(response) / spec.divisor
        return len(tokenizer(response, add_special_tokens=False)["input_ids"]) / spec.divisor

    name = f"length({spec.unit})" if spec.divisor == 1 else f"length({spec.unit}/{spec.divisor:g})"
    known = "" if tokenizer is None else tokenizer_revision(tokenizer)
    facts = {"unit": spec.unit, "divisor": spec.divisor, "tokenizer": known}
    return by_text(name, setting.direction, count, kind="length", **facts)


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


def build_regex(spec: RegexSpec, setting: Setting) -> FunctionScorer:
    """Return the scorer that is 1 where the pattern is found in a response, else 0."""
    pattern = re.compile(spec.pattern)
    name, facts = f"regex({spec.pattern})", {"kind": "regex", "pattern": spec.pattern}
    return by_text(name, setting.direction, lambda text: bool(pattern.search(text)), **facts)


class DistinctWordsSpec(ScorerSpec):
    """Keys of ``kind: distinct-words``."""

    min_letters: int = Field(default=4, ge=1)
    """Shorter words do not count: most are articles and prepositions."""


def build_distinct_words(spec: DistinctWordsSpec, setting: Setting) -> FunctionScorer:
    """Return the scorer log(1 + distinct words of at least ``min_letters`` letters)."""
    word = re.compile(rf"[^\W\d_]{{{spec.min_letters},}}")
    return by_text(
        f"distinct-words({spec.min_letters})",
        setting.direction,
        lambda text: float(np.log1p(len(set(word.findall(text.lower()))))),
        kind="distinct-words",
        min_letters=spec.min_letters,
    )


WORD = re.compile(r"\w+")


class DistinctBigramsSpec(ScorerSpec):
    """``kind: distinct-bigrams`` has no keys."""


def distinct_bigrams(direction: Direction) -> FunctionScorer:
    """Return the scorer distinct-2 of Li et al. 2016 (section 5), in [0, 1], for each response by itself."""
    return by_text("distinct-bigrams", direction, share, kind="distinct-bigrams", word=WORD.pattern)


def share(response: str) -> float:
    """Return distinct bigrams / bigrams, in lower case; 0 where there is no bigram."""
    words = WORD.findall(response.lower())
    bigrams = list(zip(words, words[1:], strict=False))
    return len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def build_distinct_bigrams(spec: DistinctBigramsSpec, setting: Setting) -> FunctionScorer:  # noqa: ARG001
    """Return the scorer."""
    return distinct_bigrams(setting.direction)
