"""TF-IDF of words and of characters side by side; the module that needs scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

if TYPE_CHECKING:
    from dualign.scorers.lexical import LexicalClassifier

MAX_FEATURES = 20_000  # a side; more adds file size and no accuracy at a few thousand rows


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


def features(texts: Sequence[str], classifier: LexicalClassifier) -> Any:
    """Return the sparse ``[text, feature]`` matrix of a trained classifier: words first, then characters."""
    words = word_vectorizer(vocabulary={term: index for index, term in enumerate(classifier.words)})
    characters = character_vectorizer(vocabulary={term: index for index, term in enumerate(classifier.characters)})
    words.idf_ = classifier.idf[: len(classifier.words)]
    characters.idf_ = classifier.idf[len(classifier.words) :]
    short = cut(texts, classifier.max_words)
    return sparse.hstack([words.transform(short), characters.transform(short)], format="csr")
