"""The losses of methods that take the policy of an earlier step as a given: PD-DPO and MODPO, one number a pair."""

from torch import Tensor
from torch.nn import functional


def pd_dpo(safer: tuple[Tensor, Tensor], costlier: tuple[Tensor, Tensor], *, beta: float, multiplier: float) -> Tensor:
    """Return ``-log sigmoid((implied cost of costlier - implied cost of safer) / multiplier)``, shape ``[pair]``.

    The implied cost is ``beta log pi_r / pi_ref - beta log pi / pi_ref``. A side is (log-ratio of the policy, log-ratio
    of the helpful policy pi_r), both to the reference. It is DPO with the safer answer preferred, ``pi_r`` as reference
    and the coefficient ``beta / multiplier``. Du, Koong & Srikant 2025, arXiv 2510.05703; reconstructed from what its
    summaries force.
    """
    implied = [beta * (helpful - own) for own, helpful in (costlier, safer)]
    return -functional.logsigmoid((implied[0] - implied[1]) / multiplier)


def modpo(
    preferred: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], *, beta: float, weights: tuple[float, float]
) -> Tensor:
    """Return ``-log sigmoid(R(preferred) - R(other))``, ``R = (beta log-ratio - w1 score) / w0``, shape ``[pair]``.

    A side is (log-ratio, score of the other objective, higher is better). Zhou et al. 2023, arXiv 2310.03708.
    """
    first, second = weights
    values = [(beta * ratio - second * score) / first for ratio, score in (preferred, other)]
    return -functional.logsigmoid(values[0] - values[1])
