"""``kind: fitted``: a linear reward or cost model on frozen features, as ``dualign scorer fit`` writes it; TF-IDF.

The two files in which what was learned is kept hold numbers and texts alone: ``NAME.json``, which a revision seals, and
``NAME.safetensors`` (float64).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar

import numpy as np

from dualign.errors import ConfigError, DataError, MissingError
from dualign.hashing import digest
from dualign.protocols import Direction, fewest
from dualign.records import FloatArray, Prompt
from dualign.runs.store import write_bytes
from dualign.scorers.spec import ScorerSpec, Setting, existing, revision_of
from dualign.scorers.states import StateFeatures

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


FORMAT, NAME = "dualign-fitted-1", "fitted"


Features = Tfidf | StateFeatures
"""Numbers of an answer, fixed once they are made: called, ``[answer, feature]``, dense or sparse."""
FEATURES: dict[str, type[Features]] = {"tfidf": Tfidf, "states": StateFeatures}


class FittedSpec(ScorerSpec):
    """Keys of ``kind: fitted``."""

    path: str
    """Folder that ``dualign scorer fit`` wrote."""
    fitted_as: Literal["reward", "cost"] | None = None
    """What the model was fitted as; only needed where it is used as the other, as a term of a sum with its own sign."""


@dataclass(frozen=True)
class FittedScorer:
    """score = bias + sum over the blocks of weights . features."""

    features: Mapping[str, Features]
    """By name in ``FEATURES``."""
    weights: Mapping[str, FloatArray]
    bias: float
    fitted_as: Direction
    objective: str
    """Name in ``linear.OBJECTIVES``."""
    direction: Direction
    """What it is used as."""
    id: str = NAME
    """The kind and the folder's name."""

    @property
    def words_read(self) -> int | None:
        """Return how many words of an answer are read at the most; none: all."""
        return fewest(getattr(block, "max_words", None) for block in self.features.values())

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[response]`` scores.

        Raises:
            ScorerError: a text is longer than the features' model was fitted for.
        """
        total = np.full(len(responses), self.bias)
        for name, block in self.features.items():
            total = total + np.asarray(block(prompts, responses) @ self.weights[name]).ravel()
        return total

    @property
    def revision(self) -> str:
        """Return a hash of the head and its features, all that determines the numbers."""
        parts = [part for name, value in sorted(self._tensors().items()) for part in (f"{name}\n", value)]
        return revision_of(head=self._facts(), weights=array_digest(*parts))

    def save(self, folder: Path) -> None:
        """Write both files into ``folder``."""
        write_learned(folder, NAME, {**self._facts(), "revision": self.revision}, self._tensors())

    def _facts(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "direction": self.fitted_as,
            "objective": self.objective,
            "bias": self.bias,
            "features": {name: block.to_json() for name, block in self.features.items()},
        }

    def _tensors(self) -> dict[str, FloatArray]:
        blocks = {f"{n}.{key}": value for n, block in self.features.items() for key, value in block.tensors().items()}
        return {**{f"{name}.weights": values for name, values in self.weights.items()}, **blocks}


def build(spec: FittedSpec, setting: Setting) -> FittedScorer:
    """Return the scorer that ``spec`` describes, with the very numbers that were saved.

    Raises:
        ConfigError: it was fitted as a reward and is used as a cost, or the other way round.
        MissingError: the folder or a file is not there, or the model of its features is not.
        DataError: a file is damaged, of another format, or was altered; or the model is another one by now.
    """
    folder = existing(setting.folder, spec.path, "scorer fitted")

    def made(head: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> FittedScorer:
        blocks = head["features"]
        return FittedScorer(
            features={name: FEATURES[name].load(facts, _own(arrays, name)) for name, facts in blocks.items()},
            weights={name: arrays[f"{name}.weights"] for name in blocks},
            bias=float(head["bias"]),
            fitted_as=head["direction"],
            objective=head["objective"],
            direction=setting.direction,
            id=f"fitted({folder.resolve().name})",
        )

    fitted = read_learned(folder, NAME, made, form=FORMAT, what="fitted scorer", written_by="'dualign scorer fit'")
    if fitted.fitted_as != (spec.fitted_as or setting.direction):
        raise ConfigError(
            f"scorer fitted: {folder.name} was fitted as a {fitted.fitted_as} and is used as a {setting.direction}; "
            f"say 'fitted_as: {fitted.fitted_as}' where another sign is meant, as in a sum with a negative weight"
        )
    return fitted


def _own(arrays: Mapping[str, FloatArray], name: str) -> dict[str, FloatArray]:
    return {key.removeprefix(f"{name}."): value for key, value in arrays.items() if key.startswith(f"{name}.")}
