"""The figures of a scorer's check: order, sign, scale, extremes, batch parity, agreement, human labels.

What cannot be told is NaN here.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from dualign.maths.agreement import cohen_kappa, pair_agreement, pairs_within, spearman
from dualign.maths.auc import clustered_auc
from dualign.maths.calibration import clustered_share
from dualign.maths.clustering import rows_of_prompts
from dualign.maths.prediction_powered import prediction_powered_mean
from dualign.maths.preference import label_logit, pooled_deviation, saturation_share
from dualign.maths.sign_test import sign_test
from dualign.records import FloatArray
from dualign.scorers.checking.judged import Judged
from dualign.scorers.protocol import Scorer

CONFIDENCE = 0.95
CONSTANT = 1e-9
"""Scores that differ by less than this share of the largest are one number and rounding."""
PARITY = 1e-5
"""Largest change that a batch may make, as a share of the largest score (of 1, where all are smaller)."""
ALONE = 32
"""Answers that are scored once more by themselves."""


def order(scores: FloatArray, data: Judged) -> dict[str, Any] | None:
    """Return the share of labelled pairs in the right order (ties count half) and the sign test; none without pairs."""
    if not data.higher.size:
        return None
    difference = scores[data.higher] - scores[data.lower]
    share = clustered_share((1 + np.sign(difference)) / 2, data.pair_prompts, confidence=CONFIDENCE)
    return {
        **asdict(share),
        "ties": float((difference == 0).mean()),
        "sign_test": asdict(sign_test(difference, data.pair_prompts)),
    }


def detection(scores: FloatArray, data: Judged) -> dict[str, Any] | None:
    """Return how well a cost tells answers flagged unsafe from those flagged safe; none without flags of both kinds.

    ``auc`` asks nothing of the cost's zero; ``sign`` is the share of flagged answers with a positive cost where they
    are unsafe and none where they are safe, beside the share that the commoner flag alone would get.
    """
    said = ~np.isnan(data.unsafe)
    unsafe, index = data.unsafe[said] == 1, data.prompt_index[said]
    if unsafe.all() or not unsafe.any():
        return None
    groups = np.unique(index, return_inverse=True)[1].astype(np.int64)
    value, low, high = clustered_auc(scores[said], unsafe, groups, CONFIDENCE)
    above = scores[said] > 0
    return {
        "auc": {"value": value, "low": low, "high": high},
        "sign": asdict(clustered_share((above == unsafe).astype(np.float64), index, confidence=CONFIDENCE)),
        "kappa": cohen_kappa(above, unsafe),
        "commoner_flag": float(max(unsafe.mean(), 1 - unsafe.mean())),
        "safe": int((~unsafe).sum()),
        "unsafe": int(unsafe.sum()),
        "n_prompts": int(groups.max()) + 1,
    }


def scale(scores: FloatArray, data: Judged, *, beta: float, temperature: float) -> dict[str, Any]:
    """Return spreads, and shares of labels that are arg-max labels in practice, over all pairs within a prompt.

    Labels are ``sigmoid(difference / temperature)``, of raw scores and of scores in units of their within-prompt SD;
    ``policy`` are the odds ``difference / beta`` that the best policy gives such a pair at a coefficient ``beta`` for
    scores in these units: the temperature does not move it, because DPO then runs at ``beta / temperature``.
    """
    first, second = pairs_within(data.prompt_index)
    rows = [scores[group] for group in rows_of_prompts(data.prompt_index) if group.size > 1]
    spread = 0.0 if all(np.ptp(row) == 0 for row in rows) else pooled_deviation(rows, [1.0] * len(rows))
    raw = label_logit(scores[first], scores[second], temperature=temperature)
    normalised = raw / spread if spread > 0 else raw
    return {
        "mean": float(scores.mean()),
        "sd": float(scores.std(ddof=1)) if scores.size > 1 else None,
        "within_prompt_sd": spread if rows else None,
        "beta": beta,
        "temperature": temperature,
        "pairs": int(first.size),
        "saturated": {
            "raw": saturation_share(raw),
            "normalised": saturation_share(normalised),
            "policy": saturation_share(normalised * temperature / beta),
        },
    }


def extremes(scores: FloatArray) -> dict[str, Any]:
    """Return the ends of the scores, the shares of answers that score exactly there, and the number of values."""
    low, high = float(scores.min()), float(scores.max())
    return {
        "constant": high - low <= CONSTANT * max(abs(low), abs(high)),
        "values": int(np.unique(scores).size),
        "min": low,
        "max": high,
        "at_min": float((scores == low).mean()),
        "at_max": float((scores == high).mean()),
    }


def parity(scorer: Scorer, scores: FloatArray, data: Judged) -> dict[str, Any]:
    """Return the largest change of a score when its answer is scored alone instead of with all others.

    Evenly spread answers are scored once more, one a call.
    """
    rows = np.unique(np.linspace(0, len(scores) - 1, min(ALONE, len(scores))).astype(np.int64))
    alone = np.array([float(scorer([data.prompts[k]], [data.texts[k]])[0]) for k in rows])
    largest = float(np.abs(alone - scores[rows]).max())
    allowed = PARITY * max(1.0, float(np.abs(scores).max()))
    return {"answers": int(rows.size), "largest_change": largest, "allowed": allowed, "held": largest <= allowed}


def agreement(first: FloatArray, second: FloatArray, data: Judged) -> dict[str, Any]:
    """Return how far two scores agree: on ranks of all answers, on the order within prompts, on the sign."""
    one, other = pairs_within(data.prompt_index)
    pairs = pair_agreement(first[one] - first[other], second[one] - second[other])
    return {
        "spearman": spearman(first, second),
        "pairs": asdict(clustered_share(pairs, data.prompt_index[one], confidence=CONFIDENCE)) if one.size else None,
        "kappa": cohen_kappa(first > 0, second > 0),
        "answers": int(first.size),
    }


def human_correction(scores: FloatArray, data: Judged) -> dict[str, Any] | None:
    """Return the share of unsafe answers by people alone, by the judge alone, and by both together.

    None unless some prompts have flags and others have none: without either there is nothing to correct.
    """
    said = ~np.isnan(data.unsafe)
    together = prediction_powered_mean(data.unsafe, scores, data.prompt_index, confidence=CONFIDENCE)
    if not said.any() or not together.unlabelled:
        return None
    people = prediction_powered_mean(data.unsafe, scores, data.prompt_index, weight=0.0, confidence=CONFIDENCE)
    return {
        "people": asdict(people),
        "corrected": asdict(together),
        "judge": asdict(clustered_share((scores > 0).astype(np.float64), data.prompt_index, confidence=CONFIDENCE)),
    }
