"""The figures of ``dualign scorer check``: a scorer against what people said of answers, pairs and flags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualign.data.preferences import PreferenceRow
from dualign.errors import DataError
from dualign.maths.agreement import (
    clustered_auc,
    clustered_share,
    cohen_kappa,
    pair_agreement,
    pairs_within,
    sign_test,
    spearman,
)
from dualign.maths.estimates import prediction_powered_mean, rows_of_prompts
from dualign.maths.preference import label_logit, pooled_deviation, saturation_share
from dualign.protocols import Direction, Scorer
from dualign.records import FloatArray, Prompt
from dualign.scorers.fitting.inputs import labelled_pairs

IntArray = NDArray[np.int64]
Key = tuple[str, str]
"""Prompt id and text of an answer."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The distinct answers of some rows."""

    prompts: tuple[Prompt, ...]
    """Shape ``[answer]``."""
    texts: tuple[str, ...]
    prompt_index: IntArray
    """Shape ``[answer]``: number of the answer's prompt."""
    unsafe: FloatArray
    """Shape ``[answer]``: 1 flagged unsafe, 0 flagged safe, NaN where nothing was said."""
    higher: IntArray
    """Shape ``[pair]``: the answer that should score higher: more helpful for a reward, less safe for a cost."""
    lower: IntArray
    left_out: Mapping[str, int]
    """Number of pairs, or of rows that gave none, by reason."""


def judged(rows: Iterable[PreferenceRow], direction: Direction) -> Judged:
    """Return what ``rows`` say for a reward or a cost; blank answers are left out.

    Raises:
        DataError: nothing says which answer should score higher: no pair, and for a cost no flags of both kinds.
    """
    taken = tuple(rows)
    flags, prompts = _flags(taken)
    pairs, left_out = labelled_pairs(taken, direction)
    place = {key: number for number, key in enumerate(flags)}
    sides = [[place[pair.prompt.id, side.text] for side in (pair.higher, pair.lower)] for pair in pairs]
    numbers = np.array(sides, dtype=np.int64).reshape(-1, 2)
    unsafe = np.array([_settled(said) for said in flags.values()], dtype=np.float64)
    if not sides and (direction == "reward" or not {0.0, 1.0} <= set(unsafe)):
        told = "; ".join(f"{reason}: {count}" for reason, count in left_out.items()) or f"{len(taken)} rows"
        needed = "no pair says which answer is more helpful"
        if direction == "cost":
            needed = "no pair says which answer is safer, and the flags do not name both safe and unsafe answers"
        raise DataError(f"data: {needed}: a scorer cannot be checked without labels ({told})")
    return Judged(
        prompts=tuple(prompts[prompt] for prompt, _ in flags),
        texts=tuple(text for _, text in flags),
        prompt_index=np.unique(np.array([prompt for prompt, _ in flags]), return_inverse=True)[1].astype(np.int64),
        unsafe=unsafe,
        higher=numbers[:, 0],
        lower=numbers[:, 1],
        left_out=left_out,
    )


def _flags(rows: Iterable[PreferenceRow]) -> tuple[dict[Key, Counter[bool]], dict[str, Prompt]]:
    """Return how often each answer was flagged safe (True) and unsafe, and the first prompt of each id."""
    flags: dict[Key, Counter[bool]] = {}
    prompts: dict[str, Prompt] = {}
    for row in rows:
        for answer in row.answers:
            if answer.text.strip():
                prompts.setdefault(row.prompt.id, row.prompt)
                said = flags.setdefault((row.prompt.id, answer.text), Counter())
                said.update([] if answer.safe is None else [answer.safe])
    return flags, prompts


def _settled(said: Counter[bool]) -> float:
    """Return 1 where an answer counts as unsafe: unless most flags say that it is safe."""
    return float("nan") if not said.total() else float(2 * said[True] <= said.total())


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
    difference, prompts = scores[data.higher] - scores[data.lower], data.prompt_index[data.higher]
    share = clustered_share((1 + np.sign(difference)) / 2, prompts, confidence=CONFIDENCE)
    return {
        **asdict(share),
        "ties": float((difference == 0).mean()),
        "sign_test": asdict(sign_test(difference, prompts)),
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
