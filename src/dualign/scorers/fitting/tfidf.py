"""TF-IDF of the response as features: word 1- and 2-grams beside character 2- to 4-grams, of length sqrt(2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy import sparse

from dualign.records import FloatArray, Prompt
from dualign.scorers.lexical_features import features, learn

MAX_WORDS = 1_000
"""Whole answers, nearly always: unlike the class of an answer, its order among others may be told at its end."""


@dataclass(frozen=True)
class TfidfFeatures:
    """Vocabularies and weights, as they were in the texts that they were made from."""

    words: tuple[str, ...]
    characters: tuple[str, ...]
    idf: FloatArray
    """Shape ``[feature]``, words first."""
    max_words: int = MAX_WORDS

    @classmethod
    def of(cls, responses: Sequence[str]) -> Self:
        """Return the features of the terms of ``responses``; no label is read.

        Raises:
            DataError: no term is common enough.
        """
        learned = learn(responses, MAX_WORDS)
        return cls(learned.words, learned.characters, learned.idf)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Any:  # noqa: ARG002
        """Return the sparse ``[answer, feature]`` matrix."""
        if not responses:
            return sparse.csr_matrix((0, len(self.idf)))
        return features(responses, self)

    def to_json(self) -> dict[str, Any]:
        """Return all but the arrays."""
        return {"words": self.words, "characters": self.characters, "max_words": self.max_words}

    def tensors(self) -> dict[str, FloatArray]:
        """Return the arrays."""
        return {"idf": np.ascontiguousarray(self.idf)}

    @classmethod
    def load(cls, head: Mapping[str, Any], tensors: Mapping[str, FloatArray]) -> Self:
        """Return the features that ``to_json`` and ``tensors`` told of."""
        return cls(tuple(head["words"]), tuple(head["characters"]), tensors["idf"], int(head["max_words"]))
