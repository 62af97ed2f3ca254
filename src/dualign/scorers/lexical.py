"""A linear classifier on TF-IDF of words and character n-grams: trained in seconds, kept without pickle.

A folder holds it: ``lexical.json`` (vocabularies, settings, quality) and ``lexical.safetensors`` (weights, float64).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dualign.errors import DataError, MissingError
from dualign.records import FloatArray, Prompt
from dualign.scorers.protocol import Direction
from dualign.scorers.spec import revision_of

FORMAT = "dualign-lexical-1"
NAMES = ("lexical.json", "lexical.safetensors")

Output = Literal["probability", "logit"]


@dataclass(frozen=True)
class LexicalClassifier:
    """logit P(positive | text) = intercept + coefficients . tfidf(first ``max_words`` words of the text)."""

    words: tuple[str, ...]
    """Vocabulary of word 1- and 2-grams, in the order of the first weights."""
    characters: tuple[str, ...]
    """Vocabulary of character 2- to 4-grams inside words, in the order of the weights after those."""
    idf: FloatArray
    """Shape ``[feature]``."""
    coefficients: FloatArray
    """Shape ``[feature]``."""
    intercept: float
    max_words: int
    """Longer texts are cut, in training as in use: how long an answer is must not tell its class."""
    quality: Mapping[str, Any] | None = None
    """Figures by grouped cross-validation, as they were when it was trained."""

    @property
    def revision(self) -> str:
        """Return a hash of all that determines the numbers."""
        digest = hashlib.sha256(np.ascontiguousarray(self.idf, "<f8").tobytes())
        digest.update(np.ascontiguousarray(self.coefficients, "<f8").tobytes())
        return revision_of(
            format=FORMAT,
            words=self.words,
            characters=self.characters,
            weights=digest.hexdigest(),
            intercept=self.intercept,
            max_words=self.max_words,
        )

    def logits(self, texts: Sequence[str]) -> FloatArray:
        """Return shape ``[text]`` log-odds of the positive class."""
        from dualign.scorers.lexical_features import features

        if not texts:
            return np.zeros(0)
        matrix = features(texts, self)
        return np.asarray(matrix @ self.coefficients + self.intercept, dtype=np.float64)

    def probabilities(self, texts: Sequence[str]) -> FloatArray:
        """Return shape ``[text]`` probabilities of the positive class."""
        from scipy.special import expit

        return np.asarray(expit(self.logits(texts)), dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write both files into ``folder``, each in one step."""
        from safetensors.numpy import save

        folder.mkdir(parents=True, exist_ok=True)
        weights = {"idf": np.ascontiguousarray(self.idf), "coefficients": np.ascontiguousarray(self.coefficients)}
        head = {
            "format": FORMAT,
            "revision": self.revision,
            "intercept": self.intercept,
            "max_words": self.max_words,
            "quality": self.quality,
            "words": self.words,
            "characters": self.characters,
        }
        _write(folder / NAMES[1], save(weights))
        _write(folder / NAMES[0], json.dumps(head, ensure_ascii=True, indent=0).encode())


def load_lexical(folder: Path) -> LexicalClassifier:
    """Return the classifier of a folder, with the very numbers that were saved.

    Raises:
        MissingError: a file is missing.
        DataError: a file is damaged, of another format, or does not belong to the other one.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    for name in NAMES:
        if not (folder / name).is_file():
            raise MissingError(f"{folder}: no {name}; a folder written by a lexical classifier is needed")
    try:
        head = json.loads((folder / NAMES[0]).read_bytes())
        weights = load((folder / NAMES[1]).read_bytes())
        classifier = LexicalClassifier(
            words=tuple(head["words"]),
            characters=tuple(head["characters"]),
            idf=weights["idf"],
            coefficients=weights["coefficients"],
            intercept=float(head["intercept"]),
            max_words=int(head["max_words"]),
            quality=head["quality"],
        )
        known = head["format"] == FORMAT and head["revision"] == classifier.revision
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"{folder}: damaged lexical classifier ({type(error).__name__}: {error})") from error
    if not known:
        raise DataError(f"{folder}: the lexical classifier was altered, or is of another format than {FORMAT}")
    return classifier


def _write(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.partial")
    beside.write_bytes(content)
    beside.replace(path)


@dataclass(frozen=True, slots=True)
class LexicalScorer:
    """The classifier's probability or logit for the response's text."""

    classifier: LexicalClassifier
    direction: Direction
    output: Output = "probability"

    @property
    def id(self) -> str:
        """Return the kind and the output."""
        return f"lexical({self.output})"

    @property
    def revision(self) -> str:
        """Return a hash of the classifier and the output."""
        return revision_of(kind="lexical", classifier=self.classifier.revision, output=self.output)

    @property
    def words_read(self) -> int | None:
        """Return how many words of an answer are read at the most; none: all."""
        return self.classifier.max_words

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:  # noqa: ARG002
        """Return shape ``[response]`` probabilities or logits."""
        if self.output == "logit":
            return self.classifier.logits(responses)
        return self.classifier.probabilities(responses)


def with_quality(classifier: LexicalClassifier, figures: Mapping[str, Any]) -> LexicalClassifier:
    """Return the classifier with the figures that are saved beside it."""
    return replace(classifier, quality=dict(figures))
