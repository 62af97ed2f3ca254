"""TF-IDF of words and of characters side by side; the module that needs scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from dualign.errors import DataError
from dualign.records import FloatArray

MAX_FEATURES = 20_000  # a side; more adds file size and no accuracy at a few thousand rows
RARE, MANY_TEXTS = 2, 200
"""From so many texts on, terms of fewer than ``RARE`` are left out: they could only be learned by heart."""


class Vocabulary(Protocol):
    """What TF-IDF needs to know of the texts that it was made from."""

    @property
    def words(self) -> tuple[str, ...]:
        """Word n-grams, in the order of the first features."""

    @property
    def characters(self) -> tuple[str, ...]:
        """Character n-grams, in the order of the features after those."""

    @property
    def idf(self) -> FloatArray:
        """Shape ``[feature]``."""

    @property
    def max_words(self) -> int:
        """Longer texts are cut."""


def word_vectorizer(**settings: Any) -> Any:
    """Return the TF-IDF of word 1- and 2-grams; apostrophes are folded by ``cut``."""
    return TfidfVectorizer(
        ngram_range=(1, 2), token_pattern=r"(?u)\b\w[\w']*\b", sublinear_tf=True, lowercase=True, **settings
    )


def character_vectorizer(**settings: Any) -> Any:
    """Return the TF-IDF of character 2- to 4-grams that do not cross words."""
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, lowercase=True, **settings)


def cut(texts: Sequence[str], max_words: int) -> list[str]:
    """Return the first ``max_words`` words of each text, with curly apostrophes made straight."""
    return [" ".join(text.replace("\u2019", "'").split()[:max_words]) for text in texts]


@dataclass(frozen=True, slots=True)
class LearnedTerms:
    """Terms of some texts, their weights, and what they make of those texts."""

    words: tuple[str, ...]
    characters: tuple[str, ...]
    idf: FloatArray
    """Shape ``[feature]``, words first."""
    matrix: Any
    """Sparse, shape ``[text, feature]``."""


def learn(texts: Sequence[str], max_words: int) -> LearnedTerms:
    """Return the terms of ``texts``, cut at ``max_words``; one of the two sides may be empty.

    Words are, where a language writes none apart and no answer repeats another; characters then say it all.

    Raises:
        DataError: both sides are empty.
    """
    rare = RARE if len(texts) >= MANY_TEXTS else 1
    short = cut(texts, max_words)
    sides = [make(min_df=rare, max_features=MAX_FEATURES) for make in (word_vectorizer, character_vectorizer)]
    (words, word_idf, of_words), (characters, character_idf, of_characters) = (_fitted(side, short) for side in sides)
    if not words and not characters:
        raise DataError(
            f"TF-IDF: no word and no 2 to 4 characters in a row stand in {rare} of the {len(texts)} texts, "
            "so that nothing can be learned from them; longer or more texts are needed"
        )
    matrix = sparse.hstack([of_words, of_characters], format="csr")
    return LearnedTerms(words, characters, np.concatenate([word_idf, character_idf]), matrix)


def _fitted(vectorizer: Any, texts: Sequence[str]) -> tuple[tuple[str, ...], FloatArray, Any]:
    """Return terms, weights and matrix of one side; all empty where no term is left."""
    try:
        matrix = vectorizer.fit_transform(texts)
    except ValueError:
        # All that scikit-learn raises for texts: "empty vocabulary", or "after pruning, no terms remain".
        return (), np.zeros(0), sparse.csr_matrix((len(texts), 0))
    return tuple(str(term) for term in vectorizer.get_feature_names_out()), vectorizer.idf_, matrix


def features(texts: Sequence[str], known: Vocabulary) -> Any:
    """Return the sparse ``[text, feature]`` matrix under a known vocabulary: words first, then characters."""
    short, size = cut(texts, known.max_words), len(known.words)
    words = _weighted(word_vectorizer, known.words, known.idf[:size], short)
    characters = _weighted(character_vectorizer, known.characters, known.idf[size:], short)
    return sparse.hstack([words, characters], format="csr")


def _weighted(make: Callable[..., Any], terms: Sequence[str], idf: FloatArray, texts: Sequence[str]) -> Any:
    if not terms:
        return sparse.csr_matrix((len(texts), 0))
    vectorizer = make(vocabulary={term: index for index, term in enumerate(terms)})
    vectorizer.idf_ = idf
    return vectorizer.transform(texts)
