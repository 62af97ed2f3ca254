"""The kinds of scorers, and the one function that builds them from a config."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.errors import ConfigError, nearest
from dualign.scorers import (
    callable as callable_,
)
from dualign.scorers import (
    classifier,
    composite,
    distinct_bigrams,
    distinct_words,
    embedding,
    fitted,
    guard,
    length,
    lexical_spec,
    log_odds,
    refusal,
    refusal_phrase,
    regex,
    score_checkpoint,
)
from dualign.scorers.checked import CheckedScorer, checked
from dualign.scorers.http import chat_judge, plain
from dualign.scorers.protocol import Direction, Scorer
from dualign.scorers.spec import ScorerSpec, Setting, read_spec


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of scorer."""

    spec: type[ScorerSpec]
    build: Callable[[Any, Setting], Scorer]
    summary: str
    direction: Direction | None = None
    """The only direction that makes sense; none: the caller's choice."""


KINDS: dict[str, Kind] = {
    "callable": Kind(callable_.CallableSpec, callable_.build, "a Python callable, module:attribute"),
    "http": Kind(plain.PlainSpec, plain.build, "a service that speaks a plain JSON protocol"),
    "chat-judge": Kind(chat_judge.ChatJudgeSpec, chat_judge.build, "a chat model asked by a rubric for a number"),
    "length": Kind(length.LengthSpec, length.build, "words, characters or tokens of the response"),
    "regex": Kind(regex.RegexSpec, regex.build, "1 where a regular expression matches"),
    "refusal-phrase": Kind(
        refusal_phrase.RefusalPhraseSpec, refusal_phrase.build, "1 where the response starts with a refusal"
    ),
    "distinct-bigrams": Kind(distinct_bigrams.DistinctBigramsSpec, distinct_bigrams.build, "share of distinct bigrams"),
    "distinct-words": Kind(
        distinct_words.DistinctWordsSpec, distinct_words.build, "log(1 + number of distinct longer words)"
    ),
    "lexical": Kind(lexical_spec.LexicalSpec, lexical_spec.build, "TF-IDF and logistic regression, from labelled rows"),
    "refusal": Kind(refusal.RefusalSpec, refusal.build, "P(refusal): classifier, or opening phrase"),
    "sequence-classifier": Kind(
        classifier.SequenceClassifierSpec, classifier.build, "Hugging Face classifier or reward model"
    ),
    "score-checkpoint": Kind(
        score_checkpoint.ScoreCheckpointSpec,
        score_checkpoint.build,
        "Safe RLHF reward or cost model, end score",
    ),
    "fitted": Kind(fitted.FittedSpec, fitted.build, "reward or cost model of 'dualign scorer fit', light path"),
    "guard": Kind(guard.GuardSpec, guard.build, "P(unsafe) by the verdict token of a guard model", "cost"),
    "embedding-relevance": Kind(
        embedding.EmbeddingRelevanceSpec, embedding.build, "cosine of prompt and response under an encoder"
    ),
    "weighted-sum": Kind(
        composite.WeightedSumSpec, composite.build_weighted_sum, "offset + weights x scorers, gated by columns"
    ),
    "log-odds": Kind(log_odds.LogOddsSpec, log_odds.build, "log-odds of yes/no labels drawn from a probability"),
    "compliance-harm": Kind(
        composite.ComplianceHarmSpec,
        composite.build_compliance_harm,
        "1 - P(refusal) on the prompts of a slice, else 0",
        "cost",
    ),
    "helpfulness": Kind(
        composite.HelpfulnessSpec,
        composite.build_helpfulness,
        "1 - P(refusal) + weight x share of distinct bigrams",
        "reward",
    ),
}


def make_scorer(
    spec: Mapping[str, Any], *, direction: Direction, folder: str | Path = ".", tokenizer: Any = None
) -> CheckedScorer:
    """Return the scorer that ``spec`` (``kind`` and its keys) describes, behind the check.

    Args:
        spec: mapping as in a config.
        direction: what the scorer is used as; never read from a model.
        folder: where relative paths start.
        tokenizer: the policy's tokenizer, for scorers that count tokens and name none of their own.

    Raises:
        ConfigError: the kind or a key is unknown (the nearest is named), a value is wrong, or the kind cannot
            be used in this direction.
        MissingError: a file or a model is missing.
    """
    kind, values = _kind_of(spec)
    only = KINDS[kind].direction
    if only is not None and only != direction:
        raise ConfigError(f"scorer {kind}: is a {only} and was given as a {direction}; its sign would be wrong")
    return _make(kind, values, direction, Path(folder), tokenizer)


def _kind_of(spec: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if "kind" not in spec:
        raise ConfigError(f"scorer: key 'kind' is needed; known kinds: {', '.join(KINDS)}")
    kind = spec["kind"]
    if not isinstance(kind, str):
        raise ConfigError(f"scorer: kind is {kind!r}; a text is needed, one of {', '.join(KINDS)}")
    if kind not in KINDS:
        raise ConfigError(f"scorer: unknown kind {kind!r}; {nearest(kind, KINDS)}")
    return kind, {name: value for name, value in spec.items() if name != "kind"}


def _make(kind: str, values: Mapping[str, Any], direction: Direction, folder: Path, tokenizer: Any) -> CheckedScorer:
    """Build without the rule on directions: inside a sum a weight's sign says what a term means."""

    def inner(spec: Mapping[str, Any]) -> Scorer:
        inner_kind, inner_values = _kind_of(spec)
        return _make(inner_kind, inner_values, direction, folder, tokenizer)

    chosen = KINDS[kind]
    setting = Setting(direction, folder, tokenizer, inner)
    return checked(chosen.build(read_spec(chosen.spec, values, f"scorer {kind}"), setting))
