"""A linear classifier on TF-IDF of words and character n-grams: trained in seconds, kept without pickle.

A folder holds it: ``lexical.json`` (vocabularies, settings, quality) and ``lexical.safetensors`` (weights, float64).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from dualign.data.cells import column_text
from dualign.data.prompts import Demonstration, load_demonstrations
from dualign.data.tables import read_rows
from dualign.errors import DataError, MissingError, nearest
from dualign.maths.agreement import clustered_auc, wilson
from dualign.protocols import Direction, Scorer
from dualign.records import FloatArray, Prompt, normalise_prompt, prompt_id
from dualign.scorers.spec import ScorerSpec, Setting, read_spec, revision_of

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


BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures on rows that the classifier was not trained on; intervals cover rows, not training choices."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    auc: float
    auc_low: float
    auc_high: float
    recall: float
    """Share of the positives that are recognised (probability above 1/2)."""
    false_alarms: float
    """Share of the negatives taken for positives."""
    rows: int
    positives: int
    groups: int
    """Rows of one group (answers to one prompt) are always together, in training and in the intervals."""
    folds: int
    confidence: float = 0.95

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        return asdict(self)


def quality(
    probability: FloatArray, label: BoolArray, group: Sequence[str], *, folds: int = 1, confidence: float = 0.95
) -> Quality:
    """Return the figures of ``probability`` (shape ``[row]``) against ``label``, threshold 1/2.

    The interval of the accuracy is Wilson's with one trial a group: right when the rows of a group stand
    and fall together, too wide otherwise. That of the AUC is Obuchowski's (1997) for clustered data.

    Raises:
        ValueError: one of the classes has no rows.
    """
    label = np.asarray(label)
    if label.dtype != np.bool_:
        raise ValueError(f"labels have dtype {label.dtype}; booleans are needed")
    if label.all() or not label.any():
        raise ValueError("quality needs rows of both classes")
    codes = np.unique(np.asarray(group), return_inverse=True)[1].astype(np.int64)
    groups = int(codes.max()) + 1
    hit = (probability > 0.5) == label
    accuracy = float(hit.mean())
    accuracy_low, accuracy_high = wilson(accuracy, groups, confidence)
    area, auc_low, auc_high = clustered_auc(probability, label, codes, confidence)
    return Quality(
        accuracy=accuracy,
        accuracy_low=accuracy_low,
        accuracy_high=accuracy_high,
        auc=area,
        auc_low=auc_low,
        auc_high=auc_high,
        recall=float(hit[label].mean()),
        false_alarms=float(1 - hit[~label].mean()),
        rows=len(label),
        positives=int(label.sum()),
        groups=groups,
        folds=folds,
        confidence=confidence,
    )


MAX_WORDS = 24
"""About the 32 tokens that a small model's answers are cut at."""


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One text with its class."""

    text: str
    positive: bool
    group: str = ""
    """Rows of one group (answers to one prompt) are never split over folds; empty: the text itself is the group."""


def fit_lexical(
    rows: Sequence[LabelledText],
    *,
    max_words: int = MAX_WORDS,
    inverse_regularisation: float = 10.0,
    folds: int = 5,
    seed: int = 0,
) -> tuple[LexicalClassifier, Quality]:
    """Return the classifier of all rows, and the quality of its like on rows left out in turn.

    Classes weigh equally whatever their numbers. Texts of a class that are equal after cutting count once;
    equal texts of both classes are noise, and the quality shows it.

    Raises:
        DataError: a class has fewer groups than there are folds, or the texts have no term in common.
    """
    rows = _distinct(rows, max_words)
    label = np.array([row.positive for row in rows], dtype=np.bool_)
    group = [row.group or prompt_id(row.text) for row in rows]
    for positive, name in ((True, "positive"), (False, "negative")):
        found = len({key for key, row in zip(group, rows, strict=True) if row.positive == positive})
        if found < folds:
            raise DataError(f"lexical classifier: {found} groups of {name} rows; at least {folds} are needed")
    texts = [row.text for row in rows]
    settings: dict[str, Any] = {"max_words": max_words, "inverse_regularisation": inverse_regularisation}
    left_out = _cross_validated(texts, label, group, folds=folds, seed=seed, settings=settings)
    figures = quality(left_out, label, group, folds=folds)
    return with_quality(_fit(texts, label, **settings), figures.to_json()), figures


def refusal_rows(
    refusals: Iterable[str | Path], answers: Iterable[str | Path], *, more: Sequence[LabelledText] = ()
) -> list[LabelledText]:
    """Return labelled rows for a refusal classifier, from files of demonstrations.

    ``refusals`` are files whose responses refuse, ``answers`` files whose responses answer; ``more`` are rows of
    the caller, such as a model's own samples that comply.
    """
    rows = [
        LabelledText(response, positive, prompt.id)
        for paths, positive in ((refusals, True), (answers, False))
        for path in paths
        for prompt, response in load_demonstrations(path)
    ]
    return [*rows, *more]


def _distinct(rows: Sequence[LabelledText], max_words: int) -> list[LabelledText]:
    """Return the first of the rows that read the same within ``max_words`` and have the same class."""
    first: dict[tuple[str, bool], LabelledText] = {}
    for row in rows:
        key = " ".join(normalise_prompt(row.text).split()[:max_words])
        if key:
            first.setdefault((key, row.positive), row)
    return list(first.values())


def _fit(texts: Sequence[str], label: BoolArray, *, max_words: int, inverse_regularisation: float) -> LexicalClassifier:
    from sklearn.linear_model import LogisticRegression

    learned = learn(texts, max_words)
    model = LogisticRegression(C=inverse_regularisation, class_weight="balanced", max_iter=2000)
    model.fit(learned.matrix, label)
    return LexicalClassifier(
        words=learned.words,
        characters=learned.characters,
        idf=learned.idf,
        coefficients=np.asarray(model.coef_[0], dtype=np.float64),
        intercept=float(model.intercept_[0]),
        max_words=max_words,
    )


def _cross_validated(
    texts: Sequence[str],
    label: BoolArray,
    group: Sequence[str],
    *,
    folds: int,
    seed: int,
    settings: dict[str, Any],
) -> FloatArray:
    """Return for each row the probability by a classifier that saw no row of its group."""
    from sklearn.model_selection import StratifiedGroupKFold

    probability = np.full(len(texts), np.nan)
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    for train, test in splitter.split(texts, label, group):
        classifier = _fit([texts[index] for index in train], label[train], **settings)
        probability[test] = classifier.probabilities([texts[index] for index in test])
    return probability


LABELS = {"1": True, "true": True, "0": False, "false": False}


class ResponsesFile(ScorerSpec):
    """A file of prompts and responses of one class; the path alone may stand for it."""

    path: str
    """JSONL, CSV or Parquet."""
    prompt_column: str | None = None
    """None: by the layout that the columns are recognised as."""
    response_column: str | None = None
    """None: by the layout."""
    where: dict[str, str] = Field(default_factory=dict)
    """Keep only rows with these column values."""

    def read(self, setting: Setting) -> list[Demonstration]:
        """Return the (prompt, response) rows."""
        return load_demonstrations(
            setting.existing(self.path, "scorer lexical"),
            prompt_column=self.prompt_column,
            response_column=self.response_column,
            where=self.where,
        )


class LexicalTraining(ScorerSpec):
    """Rows to train a lexical classifier from."""

    positives: list[ResponsesFile] = Field(default_factory=list)
    """Files whose responses are all of the positive class."""
    negatives: list[ResponsesFile] = Field(default_factory=list)
    """Files whose responses are all of the negative class. They should be about what the positives are about:
    a classifier of refusals whose negatives are all harmless takes every harmful answer for a refusal."""
    rows: list[str] = Field(default_factory=list)
    """Files with columns ``response`` and ``label`` (1 or true: positive), and ``prompt`` where there is one."""
    max_words: int = Field(default=MAX_WORDS, ge=1)
    """Texts are cut after so many words, in training and in use."""
    inverse_regularisation: float = Field(default=10.0, gt=0)
    """Larger fits the training rows more closely."""
    seed: int = 0
    """Of the folds of the quality report; the classifier does not depend on it."""

    @field_validator("positives", "negatives", mode="before")
    @classmethod
    def _paths_alone(cls, files: Any) -> Any:
        if not isinstance(files, list):
            return files
        return [{"path": file} if isinstance(file, str) else file for file in files]


class LexicalSource(ScorerSpec):
    """Where a lexical classifier comes from: a folder, or rows to train it from."""

    path: str | None = None
    """Folder of a saved classifier."""
    train: LexicalTraining | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.train is None):
            raise ValueError("exactly one of 'path' and 'train' is needed")
        return self


class LexicalSpec(LexicalSource):
    """Keys of ``kind: lexical``."""

    output: Output = "probability"
    """``logit`` is unbounded and keeps differences that a probability near 0 or 1 hides."""


def labelled_rows(training: LexicalTraining, setting: Setting) -> list[LabelledText]:
    """Return all rows that the files of ``training`` hold."""
    rows = [
        LabelledText(response, positive, prompt.id)
        for files, positive in ((training.positives, True), (training.negatives, False))
        for file in files
        for prompt, response in file.read(setting)
    ]
    for path in training.rows:
        rows.extend(_read_labelled(str(setting.existing(path, "scorer lexical"))))
    return rows


def train(training: LexicalTraining, rows: Sequence[LabelledText]) -> LexicalClassifier:
    """Return the classifier trained from ``rows`` with the settings of ``training``, its quality beside it."""
    classifier, _ = fit_lexical(
        rows,
        max_words=training.max_words,
        inverse_regularisation=training.inverse_regularisation,
        seed=training.seed,
    )
    return classifier


def classifier_from(source: LexicalSource, setting: Setting) -> LexicalClassifier:
    """Return the classifier, loaded or trained.

    Raises:
        MissingError: the folder or a file of rows is missing.
        DataError: a file is broken, or a class has too few rows.
    """
    if source.train is None:
        return load_lexical(setting.existing(str(source.path), "scorer lexical"))
    return train(source.train, labelled_rows(source.train, setting))


def build(spec: LexicalSpec, setting: Setting) -> LexicalScorer:
    """Return the scorer that ``spec`` describes."""
    return LexicalScorer(classifier_from(spec, setting), setting.direction, spec.output)


def _read_labelled(path: str) -> list[LabelledText]:
    rows = []
    for row in read_rows(path):
        for name in ("response", "label"):
            if name not in row.values:
                raise DataError(f"{path}: line {row.line}: no column {name!r}; {nearest(name, row.values)}")
        text, label = row.values["response"], _label(row.values["label"])
        if not isinstance(text, str) or label is None:
            raise DataError(f"{path}: line {row.line}: a text as response and a label 0 or 1 are needed")
        prompt = row.values.get("prompt")
        rows.append(LabelledText(text, label, prompt_id(prompt) if isinstance(prompt, str) else ""))
    return rows


def _label(value: Any) -> bool | None:
    return LABELS.get((column_text(value) or "").lower())


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


def trained(
    spec: Mapping[str, Any], *, folder: str | Path, out: str | Path, more: Sequence[LabelledText] = ()
) -> tuple[dict[str, Any], dict[str, Mapping[str, Any]]]:
    """Return ``spec`` with every ``train`` replaced by the ``path`` of the trained classifier, and the qualities.

    Equal trainings (in the reward and in a cost) are done once: their folder inside ``out`` is named by a hash of
    the settings and of all rows, and one that is there already is taken.

    Args:
        spec: ``kind`` and its keys; classifiers may be nested at any depth.
        folder: where relative paths of ``spec`` start.
        out: folder that the classifiers are kept in.
        more: further labelled rows, such as a model's own samples.

    Returns:
        The new description, and for each folder's name the figures of its cross-validation.
    """
    qualities: dict[str, Mapping[str, Any]] = {}
    setting = Setting("reward", Path(folder), None, _no_inner)

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        inner = {key: walk(item) for key, item in value.items() if key != "train"}
        if "train" not in value:
            return inner
        training = read_spec(LexicalTraining, value["train"], "scorer lexical: train")
        rows = [*labelled_rows(training, setting), *more]
        settings = training.model_dump(exclude={"positives", "negatives", "rows"})
        facts = [[row.text, row.positive, row.group] for row in rows]
        path = Path(out).resolve() / f"lexical-{revision_of(settings=settings, rows=facts)}"
        if not (path / "lexical.json").exists():
            train(training, rows).save(path)
        qualities[path.name] = load_lexical(path).quality or {}
        return {**inner, "path": str(path)}

    return walk(spec), qualities


def _no_inner(spec: Mapping[str, Any]) -> Scorer:
    raise TypeError(f"a training has no scorer inside, given {dict(spec)}")
