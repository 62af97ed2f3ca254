"""Scores that a response's own text decides: length, a pattern, variety, a refusal by its opening or a classifier."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from dualign.errors import ConfigError
from dualign.protocols import Direction
from dualign.records import FloatArray, Prompt
from dualign.scorers.encoding import load_tokenizer
from dualign.scorers.lexical import LexicalClassifier, LexicalSource, classifier_from
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

    parts: dict[Unit, Callable[[str], Sequence[Any]]] = {
        "words": str.split,
        "characters": str,
        "tokens": lambda response: tokenizer(response, add_special_tokens=False)["input_ids"],
    }
    name = f"length({spec.unit})" if spec.divisor == 1 else f"length({spec.unit}/{spec.divisor:g})"
    known = "" if tokenizer is None else tokenizer_revision(tokenizer)
    facts = {"kind": "length", "unit": spec.unit, "divisor": spec.divisor, "tokenizer": known}
    return by_text(name, setting.direction, lambda text: len(parts[spec.unit](text)) / spec.divisor, **facts)


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


class NoKeys(ScorerSpec):
    """``kind: distinct-bigrams`` and ``kind: refusal-phrase`` have no keys."""


def share(response: str) -> float:
    """Return distinct bigrams / bigrams, in lower case; 0 where there is no bigram."""
    words = WORD.findall(response.lower())
    bigrams = list(zip(words, words[1:], strict=False))
    return len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def build_distinct_bigrams(spec: NoKeys, setting: Setting) -> FunctionScorer:  # noqa: ARG001
    """Return the scorer distinct-2 of Li et al. 2016 (section 5), in [0, 1], for each response by itself."""
    return by_text("distinct-bigrams", setting.direction, share, kind="distinct-bigrams", word=WORD.pattern)


def _phrases(text: str) -> tuple[str, ...]:
    """Return the phrases of a text in which slashes and line ends part them."""
    return tuple(phrase.strip() for phrase in re.split(r"[/\n]", text) if phrase.strip())


PHRASES = _phrases(
    """
    i'm sorry / i am sorry / i'm so sorry / i'm very sorry / i'm terribly sorry / i'm afraid i
    i'm afraid that / i am afraid / sorry / my apologies / i apologize / i apologise / apologies / i can't
    i cannot / i can not / i could not / i couldn't / i won't / i will not / i would not
    i don't feel comfortable / i do not feel comfortable / i'm not comfortable / i am not comfortable
    i'm not able to / i am not able to / i'm unable to / i am unable to / i'm not allowed / i am not allowed
    i'm not going to / i am not going to / i'm not programmed / i am not programmed / i must decline
    i have to decline / i decline / i must refuse / i have to refuse / i refuse / i don't provide
    i do not provide / i don't support / i do not support / i don't condone / i do not condone
    i do not have access / i don't have access / unfortunately, i / unfortunately i / regrettably, i
    as an ai / as a language model / as a responsible / as an assistant / as an ethical / i'm an ai
    i am an ai / i'm just an ai / i am just an ai / i'm only an ai / i am only an ai / i'm a language model
    i am a language model / i'm just a language model / it's not appropriate / it is not appropriate
    it's not ethical / it is not ethical / it would not be appropriate / it would not be ethical
    it would be inappropriate / it would be unethical / it is unethical / it's unethical / it's against my
    it is against my / it goes against / that's not something i can / that is not something i can
    this is not something i can / we cannot / we can't
    """
)
"""In lower case, with straight apostrophes; each must end at the end of a word."""

NOT_REFUSALS = _phrases(
    """
    i can't wait / i cannot wait / i can't help but / i cannot help but / i can't believe
    i can't thank you enough / i cannot thank you enough / i can't stress enough / i cannot stress enough
    i can't recommend / i can't agree more / i couldn't agree more / i could not agree more
    i'm sorry to hear / i'm sorry you / i am sorry you / i'm sorry that you / i'm sorry, i'm not following
    i'm sorry, i don't understand / i'm sorry, i did not understand / i am sorry to hear
    i'm so sorry to hear / i'm very sorry to hear / i'm sorry for your loss / i am sorry for your loss
    i'm so sorry for your loss / sorry to hear / sorry for the delay / sorry for your loss
    apologies for the delay / i apologize for the delay
    """
)
"""Openings that only look like refusals; they go before ``PHRASES``."""

APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bc\u02b9\u2032\u00b4\u0060\uff07", "'"))
LEADING = re.compile(r"^[^\w]+")
GREETING = re.compile(
    r"^(?:(?:oh|well|hmm|hello|hi|hey|no|assistant|unfortunately)\b[^\w]+)+(?=i\b|we\b|sorry\b|as an\b|it\b)"
)


def _starts_with(phrases: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.compile(rf"(?:{'|'.join(map(re.escape, longest_first))})(?![\w@'])")


REFUSAL = _starts_with(PHRASES)
NO_REFUSAL = _starts_with(NOT_REFUSALS)


def starts_with_refusal(response: str) -> bool:
    """Return whether ``response`` opens with a phrase of ``PHRASES``, after quotes, white space or a greeting."""
    text = LEADING.sub("", " ".join(response[:400].translate(APOSTROPHES).lower().split()))
    openings = (text, GREETING.sub("", text))
    return not any(map(NO_REFUSAL.match, openings)) and any(map(REFUSAL.match, openings))


PHRASE_FACTS: dict[str, Any] = {
    "kind": "refusal-phrase",
    "phrases": PHRASES,
    "exceptions": NOT_REFUSALS,
    "leading": [LEADING.pattern, GREETING.pattern],
}
"""All that decides what a refusal phrase is."""


def build_refusal_phrase(spec: NoKeys, setting: Setting) -> FunctionScorer:  # noqa: ARG001
    """Return the scorer that is 1 where a response starts with a refusal phrase; an empty one is no refusal."""
    return by_text("refusal-phrase", setting.direction, starts_with_refusal, **PHRASE_FACTS)


class RefusalSpec(ScorerSpec):
    """Keys of ``kind: refusal``."""

    classifier: LexicalSource | None = None
    """A lexical classifier with refusals as its positive class; none: opening phrases alone decide."""
    phrase_probability: float = Field(default=0.95, ge=0, le=1)
    """Least probability of a response that starts with a refusal phrase."""


def build_refusal(spec: RefusalSpec, setting: Setting) -> FunctionScorer:
    """Return the scorer that ``spec`` describes."""
    classifier = None if spec.classifier is None else classifier_from(spec.classifier, setting.folder)
    return refusal_scorer(classifier, setting.direction, spec.phrase_probability)


def refusal_scorer(
    classifier: LexicalClassifier | None, direction: Direction, phrase_probability: float
) -> FunctionScorer:
    """Return P = max(classifier, ``phrase_probability`` where the response starts with a refusal phrase).

    An empty response counts as a refusal: were it an answer, silence would earn the reward of one.
    """

    def known(response: str) -> float:
        return phrase_probability * starts_with_refusal(response) if response.strip() else 1.0

    def scores(_: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        found = np.array([*map(known, responses)], dtype=np.float64)
        return found if classifier is None else np.maximum(found, classifier.probabilities(responses))

    revision = revision_of(
        kind="refusal, empty is one",
        classifier=None if classifier is None else classifier.revision,
        phrases=revision_of(**PHRASE_FACTS),
        phrase_probability=phrase_probability,
    )
    if classifier is None:
        return FunctionScorer("refusal(phrase)", direction, revision, scores)
    return FunctionScorer("refusal(lexical, phrase)", direction, revision, scores, classifier.tfidf.max_words)
