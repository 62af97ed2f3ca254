"""Probability that a response is a refusal: a classifier's, or that of an opening phrase if larger."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from dualign.records import FloatArray, Prompt
from dualign.scorers.lexical import LexicalClassifier
from dualign.scorers.lexical_spec import LexicalSource, classifier_from
from dualign.scorers.protocol import Direction
from dualign.scorers.refusal_phrase import phrases_revision, starts_with_refusal
from dualign.scorers.spec import ScorerSpec, Setting, revision_of

PHRASE_PROBABILITY = 0.95


class RefusalSpec(ScorerSpec):
    """Keys of ``kind: refusal``."""

    classifier: LexicalSource | None = None
    """A lexical classifier with refusals as its positive class; none: opening phrases alone decide."""
    phrase_probability: float = Field(default=PHRASE_PROBABILITY, ge=0, le=1)
    """Least probability of a response that starts with a refusal phrase."""


@dataclass(frozen=True, slots=True)
class RefusalScorer:
    """P = max(classifier, phrase_probability where the response starts with a refusal phrase).

    An empty response counts as a refusal: were it an answer, silence would earn the reward of one.
    """

    classifier: LexicalClassifier | None
    direction: Direction
    phrase_probability: float = PHRASE_PROBABILITY

    @property
    def id(self) -> str:
        """Return the kind and what it is made of."""
        return "refusal(phrase)" if self.classifier is None else "refusal(lexical, phrase)"

    @property
    def revision(self) -> str:
        """Return a hash of the classifier, the phrases and their probability."""
        return revision_of(
            kind="refusal, empty is one",
            classifier=None if self.classifier is None else self.classifier.revision,
            phrases=phrases_revision(),
            phrase_probability=self.phrase_probability,
        )

    @property
    def words_read(self) -> int | None:
        """Return how many words of an answer are read at the most; none: all."""
        return None if self.classifier is None else self.classifier.max_words

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:  # noqa: ARG002
        """Return shape ``[response]`` probabilities; 1 for an empty response, which answers nothing."""
        phrase = np.array([starts_with_refusal(text) for text in responses], dtype=np.float64)
        empty = np.array([not text.strip() for text in responses], dtype=np.float64)
        known = np.maximum(self.phrase_probability * phrase, empty)
        if self.classifier is None:
            return known
        return np.maximum(known, self.classifier.probabilities(responses))


def build(spec: RefusalSpec, setting: Setting) -> RefusalScorer:
    """Return the scorer that ``spec`` describes."""
    classifier = None if spec.classifier is None else classifier_from(spec.classifier, setting)
    return RefusalScorer(classifier, setting.direction, spec.phrase_probability)
