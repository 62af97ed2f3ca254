"""How far two scores of the same answers agree: ranks, order within prompts, signs."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dualign.maths.clustering import rows_of_prompts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Return the correlation of the ranks, ties at their mean rank (Spearman 1904); NaN where one score is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(np.asarray(values, dtype=np.float64)) for values in (first, second)]
    a, b = (rank - (rank.size + 1) / 2 for rank in ranks)
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm > 0 else math.nan


def pair_agreement(first: ArrayLike, second: ArrayLike) -> FloatArray:
    """Return shape ``[pair]``: 1 where two differences have the same sign, 0 where opposite, 1/2 where one is 0."""
    signs = np.sign(np.asarray(first, dtype=np.float64)) * np.sign(np.asarray(second, dtype=np.float64))
    return np.asarray((1 + signs) / 2)


def cohen_kappa(first: ArrayLike, second: ArrayLike) -> float:
    """Return the agreement of two yes-or-no judgements beyond chance: ``(p_o - p_e) / (1 - p_e)`` (Cohen 1960).

    1 is perfect, 0 what two judges with these shares of "yes" would have by chance; NaN where both always say the
    same word, because chance alone would do as well.
    """
    a, b = np.asarray(first, dtype=np.bool_), np.asarray(second, dtype=np.bool_)
    if not a.size:
        return math.nan
    chance = float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
    return (float((a == b).mean()) - chance) / (1 - chance) if chance < 1 else math.nan


def pairs_within(prompt_index: ArrayLike) -> tuple[IntArray, IntArray]:
    """Return the rows of every pair of distinct rows with one prompt number, each pair once: two of ``[pair]``."""
    found = [
        (rows[first], rows[second])
        for rows in rows_of_prompts(prompt_index)
        for first, second in [np.triu_indices(rows.size, 1)]
    ]
    return np.concatenate([first for first, _ in found]), np.concatenate([second for _, second in found])
