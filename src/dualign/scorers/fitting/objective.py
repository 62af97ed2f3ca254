"""What a fit minimises, one function a kind of labels and one table."""

from collections.abc import Callable

from torch import Tensor

from dualign.maths.losses import cost_model_loss, reward_model_loss
from dualign.scorers.protocol import Direction

ScoreLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(scores of the higher answers, of the lower, signs of the higher, of the lower) -> losses; each ``[pair]``."""


def pairs(*, regularisation: float) -> ScoreLoss:
    """Return the loss of the order alone; signs are not read."""
    return lambda higher, lower, *_: reward_model_loss(higher, lower, regularisation=regularisation)


def pairs_and_signs(*, regularisation: float) -> ScoreLoss:
    """Return the loss of the order and of the sign of either cost."""

    def loss(higher: Tensor, lower: Tensor, higher_sign: Tensor, lower_sign: Tensor) -> Tensor:
        return cost_model_loss(higher, lower, higher_sign, lower_sign, regularisation=regularisation)

    return loss


OBJECTIVES: dict[str, Callable[..., ScoreLoss]] = {"pairs": pairs, "pairs-and-signs": pairs_and_signs}

ZERO = {
    "reward": "the zero of a reward is arbitrary: only differences between answers to one prompt mean something",
    "pairs": "the zero of this cost is arbitrary, because no answer has a safety flag: a limit of 0 means nothing, set "
    "limits relative to the reference",
    "pairs-and-signs": "the cost is below 0 where the answers of the data were flagged safe more often than not",
}
"""What 0 means, by what was fitted."""


def objective_name(direction: Direction, *, signed: bool) -> str:
    """Return the name in ``OBJECTIVES`` for labels of that kind."""
    return "pairs-and-signs" if direction == "cost" and signed else "pairs"


def meaning_of_zero(direction: Direction, objective: str) -> str:
    """Return what a score of 0 means."""
    return ZERO["reward" if direction == "reward" else objective]
