"""Is a scorer any good? It scores labelled answers once, and every figure follows from these scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from dualign.data.preferences import PreferenceFile
from dualign.records import FloatArray
from dualign.scorers.checking import figures
from dualign.scorers.checking.judged import Judged, judged
from dualign.scorers.checking.kept import keeps_scores
from dualign.scorers.checking.verdict import verdict, warnings
from dualign.scorers.independence import same_scorer
from dualign.scorers.protocol import Scorer

SAME_JUDGE = "the second scorer is the first: their agreement says nothing about either"


def check_scorer(
    scorer: Scorer, file: PreferenceFile, *, second: Scorer | None = None, beta: float, temperature: float
) -> dict[str, Any]:
    """Return the JSON object of ``dualign scorer check``: figures, warnings, verdict.

    Args:
        scorer: Asked for all distinct answers at once, and for a few of them one by one, unless it keeps its scores.
        file: What people said of the answers.
        second: Another scorer of the same quantity, to compare with.
        beta: KL coefficient for scores in units of their within-prompt SD.
        temperature: Of the labels.

    Raises:
        DataError: the file does not say which answers should score higher.
        ScorerError: a scorer failed.
    """
    data = judged(file.rows, scorer.direction)
    found = _figures(scorer, data, beta=beta, temperature=temperature, second=second)
    told = list(warnings(found))
    if second is not None and same_scorer(scorer, second):
        told.append(SAME_JUDGE)
    return {
        "scorer": identity(scorer),
        "data": _sizes(file, data),
        **found,
        "warnings": told,
        "verdict": verdict(found, scorer.direction),
    }


def identity(scorer: Scorer) -> dict[str, str]:
    """Return who scored."""
    return {"id": scorer.id, "revision": scorer.revision, "direction": scorer.direction}


def _figures(scorer: Scorer, data: Judged, *, beta: float, temperature: float, second: Scorer | None) -> dict[str, Any]:
    is_cost = scorer.direction == "cost"
    scores = scorer(data.prompts, data.texts)
    return {
        "order": figures.order(scores, data),
        "detection": figures.detection(scores, data) if is_cost else None,
        "scale": figures.scale(scores, data, beta=beta, temperature=temperature),
        "extremes": figures.extremes(scores),
        # Asked again, such a scorer shows what it kept; and sending a row twice costs twice.
        "parity": None if keeps_scores(scorer) else figures.parity(scorer, scores, data),
        "human_correction": figures.human_correction(scores, data) if is_cost else None,
        "agreement": None if second is None else _compared(scores, second, data),
    }


def _compared(scores: FloatArray, second: Scorer, data: Judged) -> dict[str, Any]:
    """Return the agreement with the second scorer, and how good that one is on the same labels."""
    other = second(data.prompts, data.texts)
    return {
        "second": identity(second),
        **figures.agreement(scores, other, data),
        "second_order": figures.order(other, data),
        "second_detection": figures.detection(other, data) if second.direction == "cost" else None,
    }


def _sizes(file: PreferenceFile, data: Judged) -> dict[str, Any]:
    return {
        "path": file.path,
        "format": file.format,
        "rows": len(file.rows),
        "faults": len(file.faults),
        "answers": len(data.texts),
        "prompts": len({prompt.id for prompt in data.prompts}),
        "pairs": int(data.higher.size),
        "flagged": int((~np.isnan(data.unsafe)).sum()),
        "left_out": dict(data.left_out),
    }
