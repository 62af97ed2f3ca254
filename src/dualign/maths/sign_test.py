"""Does a score point the right way more often than not? The exact sign test, one vote a prompt."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dualign.maths.bounds import binomial_p_value


@dataclass(frozen=True, slots=True)
class SignTest:
    """Votes of prompts on the sign of a score, and how likely such a vote is by chance."""

    right: int
    """Prompts of which most pairs are in the right order."""
    wrong: int
    tied: int
    """Prompts without a majority; they are left out."""
    p_right: float
    """One-sided p-value against "right at most every other time": small says that the sign is right."""
    p_wrong: float
    """The same the other way round: small says that the sign is wrong."""


def sign_test(difference: ArrayLike, prompt_index: ArrayLike) -> SignTest:
    """Return the sign test (Arbuthnott 1710) of ``difference[pair]``, positive where the order is right.

    The pairs of a prompt share its answers, so they cast one vote: the sign of (right pairs - wrong pairs). Votes of
    distinct prompts are independent, and under chance each is right with probability 1/2 once it is not a tie.
    """
    _, place = np.unique(np.asarray(prompt_index), return_inverse=True)
    votes = np.sign(np.bincount(place, weights=np.sign(np.asarray(difference, dtype=np.float64))))
    right, wrong = int((votes > 0).sum()), int((votes < 0).sum())
    cast = right + wrong
    return SignTest(
        right=right,
        wrong=wrong,
        tied=votes.size - cast,
        p_right=binomial_p_value(wrong, cast, rate=0.5),
        p_wrong=binomial_p_value(right, cast, rate=0.5),
    )
