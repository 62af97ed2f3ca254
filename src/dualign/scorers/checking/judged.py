"""Preference rows -> distinct answers with what people said of them, and the pairs whose order is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dualign.data.preferences import PreferenceRow
from dualign.errors import DataError
from dualign.records import FloatArray, Prompt
from dualign.scorers.fitting.pairs import labelled_pairs
from dualign.scorers.protocol import Direction

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

    @property
    def pair_prompts(self) -> IntArray:
        """Return shape ``[pair]``: number of the pair's prompt."""
        return np.asarray(self.prompt_index[self.higher])


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
