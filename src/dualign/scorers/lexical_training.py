"""Trains a lexical classifier from labelled texts and says how good it is, by grouped cross-validation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dualign.data.prompts import load_demonstrations
from dualign.errors import DataError
from dualign.records import FloatArray, normalise_prompt, prompt_id
from dualign.scorers.lexical import LexicalClassifier, with_quality
from dualign.scorers.quality import BoolArray, Quality, quality

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

    from dualign.scorers.lexical_features import learn

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
