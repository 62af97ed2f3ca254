"""``kind: lexical``, and the ``classifier`` key of scorers that use one."""

from collections.abc import Sequence
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from dualign.data.prompts import Demonstration, column_text, load_demonstrations
from dualign.data.sources.table import read_rows
from dualign.errors import DataError, nearest
from dualign.records import prompt_id
from dualign.scorers.lexical import LexicalClassifier, LexicalScorer, Output, load_lexical
from dualign.scorers.lexical_training import MAX_WORDS, LabelledText, fit_lexical
from dualign.scorers.spec import ScorerSpec, Setting

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
