"""The kinds of scorers, one row each; how one is made of what a config or a program gives; and who judges whom.

A policy that is pushed towards a score finds the score's mistakes, so that the same scorer measures its own success
(Gao, Schulman, Hilton 2023). An independent scorer of the same quantity shows how much of it is real.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dualign.errors import ConfigError, nearest
from dualign.models.tensors import readable
from dualign.protocols import Direction, Scorer
from dualign.scorers import checked as callable_
from dualign.scorers import (
    classifier,
    fitted,
    guard,
    lexical,
    remote,
    rules,
    score_model,
    sums,
)
from dualign.scorers.checked import CheckedScorer, checked, function_scorer
from dualign.scorers.encoding import base_place, locate, usable
from dualign.scorers.spec import ScorerSpec, Setting, read_spec

SAME_SCORE = "the score reported is the score trained on"


def same_scorer(first: Scorer, second: Scorer) -> bool:
    """Return whether two scorers give the same numbers by all that they say of themselves: id and revision."""
    return (first.id, first.revision) == (second.id, second.revision)


def dependence_warnings(trained: Mapping[str, Scorer], judges: Mapping[str, Scorer]) -> list[str]:
    """Return one line that names the scores that nobody but the scorer itself judges; none where there are no such."""
    names = [name for name, scorer in trained.items() if name not in judges or same_scorer(scorer, judges[name])]
    return [f"{SAME_SCORE}: {', '.join(names)}; name an independent scorer under evaluation.judge"] if names else []


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
    "http": Kind(remote.PlainSpec, remote.build_http, "a service that speaks a plain JSON protocol"),
    "chat-judge": Kind(remote.ChatJudgeSpec, remote.build_judge, "a chat model asked by a rubric for a number"),
    "length": Kind(rules.LengthSpec, rules.build_length, "words, characters or tokens of the response"),
    "regex": Kind(rules.RegexSpec, rules.build_regex, "1 where a regular expression matches"),
    "refusal-phrase": Kind(rules.NoKeys, rules.build_refusal_phrase, "1 where the response starts with a refusal"),
    "distinct-bigrams": Kind(rules.NoKeys, rules.build_distinct_bigrams, "share of distinct bigrams"),
    "distinct-words": Kind(
        rules.DistinctWordsSpec, rules.build_distinct_words, "log(1 + number of distinct longer words)"
    ),
    "lexical": Kind(lexical.LexicalSpec, lexical.build, "TF-IDF and logistic regression, from labelled rows"),
    "refusal": Kind(rules.RefusalSpec, rules.build_refusal, "P(refusal): classifier, or opening phrase"),
    "sequence-classifier": Kind(
        classifier.SequenceClassifierSpec, classifier.build, "Hugging Face classifier or reward model"
    ),
    "score-checkpoint": Kind(
        score_model.ScoreCheckpointSpec, score_model.build, "Safe RLHF reward or cost model, end score"
    ),
    "fitted": Kind(fitted.FittedSpec, fitted.build, "reward or cost model of 'dualign scorer fit', light path"),
    "guard": Kind(guard.GuardSpec, guard.build, "P(unsafe) by the verdict token of a guard model", "cost"),
    "embedding-relevance": Kind(
        classifier.EmbeddingRelevanceSpec, classifier.build_relevance, "cosine of prompt and response under an encoder"
    ),
    "weighted-sum": Kind(sums.WeightedSumSpec, sums.build_weighted_sum, "offset + weights x scorers, gated by columns"),
    "log-odds": Kind(sums.LogOddsSpec, sums.build_log_odds, "log-odds of yes/no labels drawn from a probability"),
    "compliance-harm": Kind(
        sums.ComplianceHarmSpec, sums.build_compliance_harm, "1 - P(refusal) on the prompts of a slice, else 0", "cost"
    ),
    "helpfulness": Kind(
        sums.HelpfulnessSpec, sums.build_helpfulness, "1 - P(refusal) + weight x share of distinct bigrams", "reward"
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
    kind, _ = _kind_of(spec)
    _check_direction(kind, KINDS[kind].direction or direction, direction)
    return _make(direction, Path(folder), tokenizer, spec)


def as_scorer(
    given: Scorer | Callable[[list[str], list[str]], Any] | Mapping[str, Any],
    *,
    direction: Direction,
    version: str = "",
    folder: str | Path = ".",
    tokenizer: Any = None,
) -> CheckedScorer:
    """Return what a program has as a scorer behind the check: a function of texts, a scorer, or a description.

    Args:
        given: ``function(prompts, responses)`` of two lists of texts that returns one number a response; an object that
            is a ``Scorer`` already; or a mapping such as ``{"kind": "length"}``, as in a config.
        direction: what it is used as, ``reward`` or ``cost``.
        version: part of a function's revision; see ``function_scorer``.
        folder: where relative paths of a description start.
        tokenizer: the policy's, for descriptions that count tokens.

    Raises:
        ConfigError: it is none of the three, a description has a mistake, or a scorer is of the other direction.
        MissingError: a file or a model of a description is missing.
    """
    if isinstance(given, Mapping):
        return make_scorer(given, direction=direction, folder=folder, tokenizer=tokenizer)
    if isinstance(given, Scorer):
        _check_direction(given.id, given.direction, direction)
        return checked(given)
    if not callable(given):
        raise ConfigError(
            f"scorer: given {type(given).__name__}; a function of (prompts, responses), a scorer or a mapping with "
            "'kind' is needed"
        )
    return checked(function_scorer(given, direction=direction, version=version))


def check_length(spec: Mapping[str, Any], folder: Path, where: str) -> None:
    """Check ``max_length`` of a scorer against its model's config, where that is on this machine; nothing is loaded.

    Raises:
        ConfigError: more is stated than the model can hold.
        MissingError: there is no such model, or its config cannot be read.
    """
    from transformers import AutoConfig

    kind, values = _kind_of(spec)
    found: Any = KINDS[kind].spec.model_validate(values)
    if not {"model", "max_length"} <= type(found).model_fields.keys():
        return
    located = locate(found.model, folder)
    place = base_place(Path(located), folder) if Path(located).is_dir() else located
    if (Path(place) / "config.json").is_file():
        with readable(f"scorer model {located!r}", "cannot be loaded"):
            config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
            usable(found, config, f"{where}: max_length")


def _check_direction(name: str, own: Direction, given: Direction) -> None:
    if own != given:
        raise ConfigError(f"scorer {name}: is a {own} and was given as a {given}; its sign would be wrong")


def _kind_of(spec: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if "kind" not in spec:
        raise ConfigError(f"scorer: key 'kind' is needed; known kinds: {', '.join(KINDS)}")
    kind = spec["kind"]
    if not isinstance(kind, str):
        raise ConfigError(f"scorer: kind is {kind!r}; a text is needed, one of {', '.join(KINDS)}")
    if kind not in KINDS:
        raise ConfigError(f"scorer: unknown kind {kind!r}; {nearest(kind, KINDS)}")
    return kind, {name: value for name, value in spec.items() if name != "kind"}


def _make(direction: Direction, folder: Path, tokenizer: Any, spec: Mapping[str, Any]) -> CheckedScorer:
    """Build without the rule on directions: inside a sum a weight's sign says what a term means."""
    kind, values = _kind_of(spec)
    setting = Setting(direction, folder, tokenizer, partial(_make, direction, folder, tokenizer))
    return checked(KINDS[kind].build(read_spec(KINDS[kind].spec, values, f"scorer {kind}"), setting))
