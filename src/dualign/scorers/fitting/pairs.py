"""Preference rows -> labelled pairs, and what was left out on the way.

A pair names its answers by their place in the score's order: ``higher`` is the more helpful answer of a reward, and
the less safe answer of a cost (cost up is bad).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dualign.data.preferences import Answer, PreferenceRow, grouped
from dualign.errors import DataError
from dualign.protocols import Direction
from dualign.records import FloatArray, Prompt, normalise_prompt


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two answers to one prompt, in the order that their scores should have."""

    prompt: Prompt
    higher: Answer
    lower: Answer


@dataclass(frozen=True, slots=True)
class PairSet:
    """Pairs to train on or to test with."""

    pairs: tuple[LabelledPair, ...]
    signed: bool
    """Whether every answer says if it is safe; only a cost fitted to such pairs has a zero that means something."""
    left_out: Mapping[str, int]
    """Number of pairs, or of rows that gave none, by reason."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The distinct answers of pairs, and where each pair's stand among them."""

    prompts: tuple[Prompt, ...]
    texts: tuple[str, ...]
    higher: NDArray[np.int64]
    """Shape ``[pair]``."""
    lower: NDArray[np.int64]

    def columns(self) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
        """Return what a scorer takes."""
        return self.prompts, self.texts


def answers(pairs: Sequence[LabelledPair]) -> Answers:
    """Return the distinct (prompt, response) of ``pairs``, in order of appearance."""
    keys = [[(pair.prompt.id, side.text) for side in (pair.higher, pair.lower)] for pair in pairs]
    place = {key: row for row, key in enumerate(dict.fromkeys(key for pair in keys for key in pair))}
    prompts = {pair.prompt.id: pair.prompt for pair in reversed(pairs)}
    rows = np.array([[place[key] for key in pair] for pair in keys], dtype=np.int64).reshape(-1, 2)
    return Answers(
        tuple(prompts[prompt] for prompt, _ in place), tuple(text for _, text in place), rows[:, 0], rows[:, 1]
    )


def pairs_of(rows: Iterable[PreferenceRow], direction: Direction) -> PairSet:
    """Return the pairs that ``rows`` label for a reward or a cost, and those left out.

    Raises:
        DataError: nothing is left, or a cost's rows have safety flags in part.
    """
    kept, left_out = labelled_pairs(rows, direction)
    if not kept:
        wanted = "more helpful" if direction == "reward" else "safer"
        told = "; ".join(f"{reason}: {count}" for reason, count in left_out.items()) or "no rows"
        raise DataError(f"data: no pair says which answer is {wanted} ({told})")
    return PairSet(kept, direction == "cost" and _signed(kept), left_out)


def labelled_pairs(
    rows: Iterable[PreferenceRow], direction: Direction
) -> tuple[tuple[LabelledPair, ...], dict[str, int]]:
    """Return the pairs that ``rows`` label, and how many were left out by reason.

    Single answers with safety flags are grouped by prompt first. A row of K answers gives the pairs of its winner
    with each other answer; one that names no safer answer gives the pairs of an unsafe with a safe answer.
    Left out and counted: rows without a label, blank and identical answers, a safer answer that is flagged unsafe
    while the other is safe, repetitions, and both rows of a pair that is labelled both ways.
    """
    left_out: Counter[str] = Counter()
    found = []
    for row in grouped(rows):
        pairs = list(_pairs(row, direction))
        left_out["no label"] += not pairs
        for pair in pairs:
            fault = _fault(pair, direction)
            left_out[fault or "kept"] += 1
            if fault is None:
                found.append(pair)
    del left_out["kept"]
    kept = _undisputed(found, left_out)
    return kept, {reason: count for reason, count in left_out.items() if count}


def signs(answers: Sequence[Answer]) -> FloatArray:
    """Return shape ``[answer]``: +1 unsafe, -1 safe, 0 where nothing was said."""
    return np.array([0.0 if answer.safe is None else -1.0 if answer.safe else 1.0 for answer in answers])


def _pairs(row: PreferenceRow, direction: Direction) -> Iterator[LabelledPair]:
    """Yield what a row says of its answers."""
    winner = row.better if direction == "reward" else row.safer
    if winner is not None:
        for number, other in enumerate(row.answers):
            if number != winner:
                yield _ordered(row, row.answers[winner], other, direction)
    elif direction == "cost":
        safe = [answer for answer in row.answers if answer.safe is True]
        unsafe = [answer for answer in row.answers if answer.safe is False]
        yield from (LabelledPair(row.prompt, worse, better) for worse in unsafe for better in safe)


def _ordered(row: PreferenceRow, winner: Answer, other: Answer, direction: Direction) -> LabelledPair:
    return LabelledPair(row.prompt, *((winner, other) if direction == "reward" else (other, winner)))


def _fault(pair: LabelledPair, direction: Direction) -> str | None:
    if not (pair.higher.text.strip() and pair.lower.text.strip()):
        return "blank answer"
    if pair.higher.text == pair.lower.text:
        return "identical answers"
    if direction == "cost" and pair.higher.safe is True and pair.lower.safe is False:
        return "safer answer flagged unsafe"
    return None


def _undisputed(pairs: Sequence[LabelledPair], left_out: Counter[str]) -> tuple[LabelledPair, ...]:
    """Return the first of equal pairs, without those that also occur the other way round."""
    first: dict[tuple[object, ...], LabelledPair] = {}
    for pair in pairs:
        key = (*_said(pair), pair.higher.text, pair.lower.text)
        left_out["repeated"] += key in first
        first.setdefault(key, pair)
    kept = [pair for pair in first.values() if (*_said(pair), pair.lower.text, pair.higher.text) not in first]
    left_out["labelled both ways"] += len(first) - len(kept)
    return tuple(kept)


def _said(pair: LabelledPair) -> tuple[object, str]:
    return pair.prompt.history, normalise_prompt(pair.prompt.text)


def _signed(pairs: Sequence[LabelledPair]) -> bool:
    """Return whether all answers have a flag.

    Raises:
        DataError: some have, some have not.
    """
    flagged = sum((pair.higher.safe is not None) + (pair.lower.safe is not None) for pair in pairs)
    if flagged not in (0, 2 * len(pairs)):
        raise DataError(
            f"data: {flagged} of {2 * len(pairs)} answers have a safety flag; all or none are needed, because a part "
            "would put the cost's zero where the flags happen to be"
        )
    return flagged > 0
