"""TF-IDF of words and of characters side by side; the module that needs scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from dualign.records import FloatArray

MAX_FEATURES = 20_000  # a side; more adds file size and no accuracy at a few thousand rows


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


def features(texts: Sequence[str], known: Vocabulary) -> Any:
    """Return the sparse ``[text, feature]`` matrix under a known vocabulary: words first, then characters."""
    words = word_vectorizer(vocabulary={term: index for index, term in enumerate(known.words)})
    characters = character_vectorizer(vocabulary={term: index for index, term in enumerate(known.characters)})
    words.idf_ = known.idf[: len(known.words)]
    characters.idf_ = known.idf[len(known.words) :]
    short = cut(texts, known.max_words)
    return sparse.hstack([words.transform(short), characters.transform(short)], format="csr")
