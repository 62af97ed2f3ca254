"""TF-IDF of words and character n-grams by scikit-learn, and the two files in which what was learned is kept.

The files hold numbers and texts alone: ``NAME.json``, which a revision seals, and ``NAME.safetensors`` (float64).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from dualign.errors import DataError, MissingError
from dualign.hashing import digest
from dualign.records import FloatArray, Prompt
from dualign.runs.store import write_bytes

MAX_FEATURES = 20_000  # a side; more adds file size and no accuracy at a few thousand rows
RARE, MANY_TEXTS = 2, 200
"""From so many texts on, terms of fewer than ``RARE`` are left out: they could only be learned by heart."""


@dataclass(frozen=True)
class Tfidf:
    """Word 1- and 2-grams and character 2- to 4-grams inside words, weighted as in the texts they were learned from.

    Called with prompts and responses, it reads the responses.
    """

    words: tuple[str, ...]
    """In the order of the first features."""
    characters: tuple[str, ...]
    """In the order of the features after those."""
    idf: FloatArray
    """Shape ``[feature]``."""
    max_words: int
    """Longer texts are cut."""

    @classmethod
    def learn(cls, texts: Sequence[str], max_words: int) -> tuple[Self, Any]:
        """Return the terms of ``texts``, cut at ``max_words``, and these texts as a sparse ``[text, feature]`` matrix.

        One of the two sides may be empty: words are, where a language writes none apart and no answer repeats another.

        Raises:
            DataError: both sides are empty.
        """
        from scipy import sparse

        rare = RARE if len(texts) >= MANY_TEXTS else 1
        sides = [_learned(side, cut(texts, max_words), rare) for side in _vectorizers()]
        (words, of_words, word_idf), (characters, of_characters, character_idf) = sides
        if not words and not characters:
            raise DataError(
                f"TF-IDF: no word and no 2 to 4 characters in a row stand in {rare} of the {len(texts)} texts, "
                "so that nothing can be learned from them; longer or more texts are needed"
            )
        learned = cls(words, characters, np.concatenate([word_idf, character_idf]), max_words)
        return learned, sparse.hstack([of_words, of_characters], format="csr")

    def of(self, texts: Sequence[str]) -> Any:
        """Return the sparse ``[text, feature]`` matrix."""
        from scipy import sparse

        short, size = cut(texts, self.max_words), len(self.words)
        sides = []
        for vectorizer, terms, idf in zip(
            _vectorizers(), (self.words, self.characters), (self.idf[:size], self.idf[size:]), strict=True
        ):
            if terms and texts:
                vectorizer.set_params(vocabulary={term: index for index, term in enumerate(terms)})
                vectorizer.idf_ = idf
                sides.append(vectorizer.transform(short))
            else:
                sides.append(sparse.csr_matrix((len(texts), len(terms))))
        return sparse.hstack(sides, format="csr")

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Any:  # noqa: ARG002
        """Return the sparse ``[answer, feature]`` matrix."""
        return self.of(responses)

    def to_json(self) -> dict[str, Any]:
        """Return all but the arrays."""
        return {"words": self.words, "characters": self.characters, "max_words": self.max_words}

    def tensors(self) -> dict[str, FloatArray]:
        """Return the arrays."""
        return {"idf": self.idf}

    @classmethod
    def load(cls, head: Mapping[str, Any], tensors: Mapping[str, FloatArray]) -> Self:
        """Return the features that ``to_json`` and ``tensors`` told of."""
        return cls(tuple(head["words"]), tuple(head["characters"]), tensors["idf"], int(head["max_words"]))


def _vectorizers() -> tuple[Any, Any]:
    """Return the vectorizer of word 1- and 2-grams, and that of character 2- to 4-grams that do not cross words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    shared: dict[str, Any] = {"sublinear_tf": True, "lowercase": True}
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w[\w']*\b", **shared)
    return words, TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), **shared)


def cut(texts: Sequence[str], max_words: int) -> list[str]:
    """Return the first ``max_words`` words of each text, with curly apostrophes made straight."""
    return [" ".join(text.replace("\u2019", "'").split()[:max_words]) for text in texts]


def _learned(vectorizer: Any, texts: Sequence[str], rare: int) -> tuple[tuple[str, ...], Any, FloatArray]:
    """Return terms, matrix and weights of one side; all empty where no term is left."""
    from scipy import sparse

    try:
        matrix = vectorizer.set_params(min_df=rare, max_features=MAX_FEATURES).fit_transform(texts)
    except ValueError:
        # All that scikit-learn raises for texts: "empty vocabulary", or "after pruning, no terms remain".
        return (), sparse.csr_matrix((len(texts), 0)), np.zeros(0)
    return tuple(str(term) for term in vectorizer.get_feature_names_out()), matrix, vectorizer.idf_


class Revised(Protocol):
    """Something with a hash of all that determines its numbers."""

    @property
    def revision(self) -> str:
        """Return the hash."""


def array_digest(*parts: str | bytes | FloatArray) -> str:
    """Return the hash of texts and of the numbers of arrays, one after the other."""
    return digest(*(np.ascontiguousarray(p, "<f8").tobytes() if isinstance(p, np.ndarray) else p for p in parts))


def write_learned(folder: Path, name: str, facts: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> None:
    """Write both files into ``folder``, each in one step."""
    from safetensors.numpy import save

    tensors = {key: np.ascontiguousarray(value, dtype=np.float64) for key, value in arrays.items()}
    write_bytes(folder / f"{name}.safetensors", save(tensors))
    # As ASCII: a term may hold half of a character, which UTF-8 has no form for.
    write_bytes(folder / f"{name}.json", json.dumps(facts, indent=1).encode())


Learned = TypeVar("Learned", bound=Revised)


def read_learned(
    folder: Path,
    name: str,
    build: Callable[[Mapping[str, Any], Mapping[str, FloatArray]], Learned],
    *,
    form: str,
    what: str,
    written_by: str,
) -> Learned:
    """Return what ``build`` makes of the facts and arrays of a folder, with the very numbers that were saved.

    Raises:
        MissingError: a file is missing.
        DataError: a file is damaged, of another format than ``form``, or was altered.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    for file in (f"{name}.json", f"{name}.safetensors"):
        if not (folder / file).is_file():
            raise MissingError(f"{folder}: no {file}; a folder written by {written_by} is needed")
    try:
        facts = json.loads((folder / f"{name}.json").read_bytes())
        if facts["format"] != form:
            raise DataError(f"{folder}: a {what} of format {facts['format']!r}; {form} is needed: fit it again")
        found = build(facts, load((folder / f"{name}.safetensors").read_bytes()))
        intact = facts["revision"] == found.revision
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise DataError(f"{folder}: damaged {what} ({type(error).__name__}: {error})") from error
    if not intact:
        raise DataError(f"{folder}: the {what} was altered; fit it again or restore it")
    return found
