"""``kind: lexical``: a logistic regression on TF-IDF, trained from labelled rows in seconds, its quality beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from dualign.data.cells import column_text
from dualign.data.prompts import Demonstration, read_demonstrations
from dualign.data.tables import read_table
from dualign.errors import DataError, nearest
from dualign.maths.agreement import clustered_auc, wilson
from dualign.protocols import Direction
from dualign.records import FloatArray, normalise_prompt, prompt_id
from dualign.scorers.fitted import Tfidf, array_digest, read_learned, write_learned
from dualign.scorers.spec import FunctionScorer, ScorerSpec, Setting, existing, read_spec, revision_of

FORMAT, NAME = "dualign-lexical-1", "lexical"

Output = Literal["probability", "logit"]


@dataclass(frozen=True)
class LexicalClassifier:
    """logit P(positive | text) = intercept + coefficients . tfidf(first words of the text)."""

    tfidf: Tfidf
    """Cuts texts, in training as in use: how long an answer is must not tell its class."""
    coefficients: FloatArray
    """Shape ``[feature]``."""
    intercept: float
    quality: Mapping[str, Any] | None = None
    """Figures by grouped cross-validation, as they were when it was trained."""

    @property
    def revision(self) -> str:
        """Return a hash of all that determines the numbers."""
        weights = array_digest(self.tfidf.idf, self.coefficients)
        return revision_of(format=FORMAT, weights=weights, intercept=self.intercept, **self.tfidf.to_json())

    def logits(self, texts: Sequence[str]) -> FloatArray:
        """Return shape ``[text]`` log-odds of the positive class."""
        return np.asarray(self.tfidf.of(texts) @ self.coefficients + self.intercept, dtype=np.float64)

    def probabilities(self, texts: Sequence[str]) -> FloatArray:
        """Return shape ``[text]`` probabilities of the positive class."""
        from scipy.special import expit

        return np.asarray(expit(self.logits(texts)), dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write both files into ``folder``."""
        facts = {"format": FORMAT, "revision": self.revision, "intercept": self.intercept, "quality": self.quality}
        arrays = {**self.tfidf.tensors(), "coefficients": self.coefficients}
        write_learned(folder, NAME, {**facts, **self.tfidf.to_json()}, arrays)


def load_lexical(folder: Path) -> LexicalClassifier:
    """Return the classifier of a folder; raises as ``read_learned`` does."""

    def build(head: Mapping[str, Any], weights: Mapping[str, FloatArray]) -> LexicalClassifier:
        tfidf, intercept = Tfidf.load(head, weights), float(head["intercept"])
        return LexicalClassifier(tfidf, weights["coefficients"], intercept, head["quality"])

    what = "lexical classifier"
    return read_learned(folder, NAME, build, form=FORMAT, what=what, written_by=f"a {what}")


def lexical_scorer(
    classifier: LexicalClassifier, direction: Direction, output: Output = "probability"
) -> FunctionScorer:
    """Return the scorer that is the classifier's probability or logit for the response's text."""
    score = classifier.logits if output == "logit" else classifier.probabilities
    revision = revision_of(kind="lexical", classifier=classifier.revision, output=output)
    words = classifier.tfidf.max_words
    return FunctionScorer(f"lexical({output})", direction, revision, lambda _, responses: score(responses), words)


BoolArray = NDArray[np.bool_]
CONFIDENCE = 0.95
FOLDS = 5
"""Parts of the rows that the quality is measured on, each left out in turn."""


def quality(probability: FloatArray, label: BoolArray, group: Sequence[str], *, folds: int = 1) -> dict[str, float]:
    """Return the figures of ``probability`` (shape ``[row]``) against ``label``, threshold 1/2; intervals cover rows.

    Rows of one group (answers to one prompt) stand together. The interval of the accuracy is Wilson's with one trial a
    group: right when the rows of a group stand and fall together, too wide otherwise. That of the AUC is Obuchowski's
    (1997) for clustered data. ``recall`` is the share of the positives that are recognised, ``false_alarms`` that of
    the negatives taken for positives.

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
    found = {"accuracy": float(hit.mean())}
    found["accuracy_low"], found["accuracy_high"] = wilson(found["accuracy"], groups, CONFIDENCE)
    found["auc"], found["auc_low"], found["auc_high"] = clustered_auc(probability, label, codes, CONFIDENCE)
    rates = {"recall": float(hit[label].mean()), "false_alarms": float(1 - hit[~label].mean())}
    sizes = {"rows": len(label), "positives": int(label.sum()), "groups": groups, "folds": folds}
    return {**found, **rates, **sizes, "confidence": CONFIDENCE}


MAX_WORDS = 24
"""About the 32 tokens that a small model's answers are cut at."""


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One text with its class."""

    text: str
    positive: bool
    group: str = ""
    """Rows of one group (answers to one prompt) are never split over folds; empty: the text itself is the group."""


def fit_lexical(rows: Sequence[LabelledText], training: LexicalTraining) -> LexicalClassifier:
    """Return the classifier of all rows, with the quality of its like on rows left out in turn.

    Classes weigh equally whatever their numbers. Texts of a class that are equal after cutting count once;
    equal texts of both classes are noise, and the quality shows it.

    Raises:
        DataError: a class has fewer groups than there are folds, or the texts have no term in common.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    rows = _distinct(rows, training.max_words)
    label = np.array([row.positive for row in rows], dtype=np.bool_)
    group = [row.group or prompt_id(row.text) for row in rows]
    for positive, name in ((True, "positive"), (False, "negative")):
        found = len({key for key, row in zip(group, rows, strict=True) if row.positive == positive})
        if found < FOLDS:
            raise DataError(f"lexical classifier: {found} groups of {name} rows; at least {FOLDS} are needed")
    texts = [row.text for row in rows]
    probability = np.full(len(texts), np.nan)
    splitter = StratifiedGroupKFold(n_splits=FOLDS, shuffle=True, random_state=training.seed)
    for inside, outside in splitter.split(texts, label, group):
        classifier = _fit([texts[index] for index in inside], label[inside], training)
        probability[outside] = classifier.probabilities([texts[index] for index in outside])
    return replace(_fit(texts, label, training), quality=quality(probability, label, group, folds=FOLDS))


def _distinct(rows: Sequence[LabelledText], max_words: int) -> list[LabelledText]:
    """Return the first of the rows that read the same within ``max_words`` and have the same class."""
    first: dict[tuple[str, bool], LabelledText] = {}
    for row in rows:
        key = " ".join(normalise_prompt(row.text).split()[:max_words])
        if key:
            first.setdefault((key, row.positive), row)
    return list(first.values())


def _fit(texts: Sequence[str], label: BoolArray, training: LexicalTraining) -> LexicalClassifier:
    from sklearn.linear_model import LogisticRegression

    tfidf, matrix = Tfidf.learn(texts, training.max_words)
    model = LogisticRegression(C=training.inverse_regularisation, class_weight="balanced", max_iter=2000)
    model.fit(matrix, label)
    return LexicalClassifier(tfidf, np.asarray(model.coef_[0], dtype=np.float64), float(model.intercept_[0]))


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

    def read(self, folder: Path) -> list[Demonstration]:
        """Return the (prompt, response) rows."""
        path = existing(folder, self.path, "scorer lexical")
        return read_demonstrations(path, **self.model_dump(exclude={"path"})).demonstrations


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


def labelled_rows(training: LexicalTraining, folder: Path) -> list[LabelledText]:
    """Return all rows that the files of ``training`` hold."""
    rows = [
        LabelledText(response, positive, prompt.id)
        for files, positive in ((training.positives, True), (training.negatives, False))
        for file in files
        for prompt, response in file.read(folder)
    ]
    for path in training.rows:
        rows.extend(_read_labelled(str(existing(folder, path, "scorer lexical"))))
    return rows


def classifier_from(source: LexicalSource, folder: Path) -> LexicalClassifier:
    """Return the classifier, loaded or trained.

    Raises:
        MissingError: the folder or a file of rows is missing.
        DataError: a file is broken, or a class has too few rows.
    """
    if source.train is None:
        return load_lexical(existing(folder, str(source.path), "scorer lexical"))
    return fit_lexical(labelled_rows(source.train, folder), source.train)


def build(spec: LexicalSpec, setting: Setting) -> FunctionScorer:
    """Return the scorer that ``spec`` describes."""
    return lexical_scorer(classifier_from(spec, setting.folder), setting.direction, spec.output)


def _read_labelled(path: str) -> list[LabelledText]:
    rows = []
    for row in read_table(path).rows:
        for name in ("response", "label"):
            if name not in row.values:
                raise DataError(f"{path}: line {row.line}: no column {name!r}; {nearest(name, row.values)}")
        text, label = row.values["response"], LABELS.get((column_text(row.values["label"]) or "").lower())
        if not isinstance(text, str) or label is None:
            raise DataError(f"{path}: line {row.line}: a text as response and a label 0 or 1 are needed")
        prompt = row.values.get("prompt")
        rows.append(LabelledText(text, label, prompt_id(prompt) if isinstance(prompt, str) else ""))
    return rows


def trained(
    spec: Mapping[str, Any], *, folder: str | Path, out: str | Path
) -> tuple[dict[str, Any], dict[str, Mapping[str, Any]]]:
    """Return ``spec`` with every ``train`` replaced by the ``path`` of the trained classifier, and the qualities.

    Equal trainings (in the reward and in a cost) are done once: their folder inside ``out`` is named by a hash of
    the settings and of all rows, and one that is there already is taken.

    Args:
        spec: ``kind`` and its keys; classifiers may be nested at any depth.
        folder: where relative paths of ``spec`` start.
        out: folder that the classifiers are kept in.

    Returns:
        The new description, and for each folder's name the figures of its cross-validation.
    """
    qualities: dict[str, Mapping[str, Any]] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        inner = {key: walk(item) for key, item in value.items() if key != "train"}
        if "train" not in value:
            return inner
        training = read_spec(LexicalTraining, value["train"], "scorer lexical: train")
        rows = labelled_rows(training, Path(folder))
        settings = training.model_dump(exclude={"positives", "negatives", "rows"})
        facts = [[row.text, row.positive, row.group] for row in rows]
        path = Path(out).resolve() / f"lexical-{revision_of(settings=settings, rows=facts)}"
        if not (path / f"{NAME}.json").exists():
            fit_lexical(rows, training).save(path)
        qualities[path.name] = load_lexical(path).quality or {}
        return {**inner, "path": str(path)}

    return walk(spec), qualities
