"""From scores to labels: the relabelled reward, its logits, what hard labels do, and the units of scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dualign.maths.exact import FloatArray

SATURATED = 0.01
"""A label within this distance of 0 or 1 is an arg-max label in practice."""


def relabel(reward: FloatArray, costs: FloatArray, multipliers: FloatArray) -> FloatArray:
    """Return ``reward - costs . multipliers``, shape of ``reward``; ``costs`` is ``[..., constraint]``."""
    return reward - costs @ np.asarray(multipliers, dtype=np.float64)


def label_logit(first: FloatArray, second: FloatArray, *, temperature: float = 1.0) -> FloatArray:
    """Return the Bradley-Terry logit that the first response wins, from relabelled rewards.

    Labels at ``temperature`` and a DPO coefficient ``beta`` give the policy of ``temperature * beta``.
    """
    return (first - second) / temperature


def flip_multipliers(reward_gap: FloatArray, cost_gap: FloatArray) -> FloatArray:
    """Return shape ``[pair]``: the multiplier at which each pair's hard label flips, infinity where it never does.

    Gaps are first minus second, one constraint. A label flips once, where a response is better *and* costlier.
    """
    ratio = np.divide(reward_gap, cost_gap, out=np.full(reward_gap.shape, np.inf), where=cost_gap != 0)
    return np.where(ratio > 0, ratio, np.inf)


def flip_curve(reward_gap: FloatArray, cost_gap: FloatArray, multipliers: FloatArray) -> FloatArray:
    """Return shape ``[multiplier]``: the share of pairs whose hard label differs from the one at multiplier 0.

    With hard labels a multiplier acts through these flips alone: where the curve is flat, many multipliers make the
    same data set.
    """
    flips = np.sort(flip_multipliers(reward_gap, cost_gap))
    counts = np.searchsorted(flips, multipliers, side="left")
    return counts / max(len(flips), 1)


def saturation_share(logits: FloatArray) -> float:
    """Return the share of labels outside ``[0.01, 0.99]``; NaN without labels."""
    edge = np.log((1 - SATURATED) / SATURATED)
    return float(np.mean(np.abs(logits) > edge)) if logits.size else float("nan")


@dataclass(frozen=True, slots=True)
class Scale:
    """Units of scores: standard deviations within prompts, fitted once on reference samples and then kept.

    Only scale is changed, never location: with ``r' = r / s_r`` and ``c_i' = c_i / s_i`` the same policies are those of
    ``beta' = beta / s_r``, ``multiplier_i' = multiplier_i s_i / s_r`` and ``limit_i' = limit_i / s_i``.
    """

    reward_sd: float
    cost_sds: FloatArray
    """Shape ``[constraint]``."""

    def __post_init__(self) -> None:
        deviations = np.append(self.cost_sds, self.reward_sd)
        if not np.all(np.isfinite(deviations)) or not np.all(deviations > 0):
            raise ValueError(f"standard deviations must be positive, got {deviations}")

    def reward(self, raw: FloatArray) -> FloatArray:
        """Return normalised rewards."""
        return raw / self.reward_sd

    def costs(self, raw: FloatArray) -> FloatArray:
        """Return normalised costs, limits, violations or their errors; the last axis is the constraint."""
        return raw / self.cost_sds

    def beta(self, raw: float) -> float:
        """Return ``beta'`` of a raw ``beta``."""
        return raw / self.reward_sd

    def multipliers(self, raw: FloatArray) -> FloatArray:
        """Return normalised multipliers."""
        return raw * self.cost_sds / self.reward_sd

    def raw_multipliers(self, normalised: FloatArray) -> FloatArray:
        """Return multipliers in raw units: reward per unit of cost."""
        return normalised * self.reward_sd / self.cost_sds

    def slope(self, raw: FloatArray) -> FloatArray:
        """Return ``d violation_i' / d multiplier_j'`` of a raw slope matrix."""
        return raw * self.reward_sd / np.outer(self.cost_sds, self.cost_sds)


class ScoredGroup(Protocol):
    """One prompt with scored responses."""

    @property
    def reward(self) -> FloatArray:
        """Shape ``[response]``."""

    @property
    def costs(self) -> FloatArray:
        """Shape ``[response, constraint]``."""

    @property
    def weight(self) -> float:
        """Weight of the prompt."""


def pooled_deviation(
    scores: Sequence[FloatArray], weights: Sequence[float], probabilities: Sequence[FloatArray] | None = None
) -> float:
    """Return the pooled within-prompt SD of scores given as one ``[response]`` array a prompt.

    Without ``probabilities`` the responses are draws (each prompt's variance is unbiased, ``ddof = 1``); with them the
    responses are the whole support. A score that never varies gives 1, so that its unit stays.
    """
    total = 0.0
    for k, values in enumerate(scores):
        if probabilities is None:
            total += weights[k] * (float(np.var(values, ddof=1)) if len(values) > 1 else 0.0)
        else:
            total += weights[k] * float(probabilities[k] @ (values - probabilities[k] @ values) ** 2)
    deviation = float(np.sqrt(total / sum(weights)))
    return deviation if deviation > 0 else 1.0


def fit_scale(groups: Sequence[ScoredGroup], *, probabilities: Sequence[FloatArray] | None = None) -> Scale:
    """Return the pooled within-prompt SDs of the groups' scores, prompts counted by their weight.

    ``probabilities`` holds the reference probabilities ``[response]`` of each group whose support is whole.

    Raises:
        ValueError: no groups.
    """
    if not groups:
        raise ValueError("a scale needs at least one group")
    weights = [group.weight for group in groups]
    constraints = range(groups[0].costs.shape[1])
    costs = [pooled_deviation([group.costs[:, i] for group in groups], weights, probabilities) for i in constraints]
    return Scale(pooled_deviation([group.reward for group in groups], weights, probabilities), np.array(costs))


def log_odds(yes: FloatArray, *, labels: int) -> FloatArray:
    """Return ``log((yes + 1/2) / (labels - yes + 1/2))``, finite where all labels agree, of the shape of ``yes``.

    PD-DPO (Du, Koong & Srikant 2025, arXiv 2510.05703) estimates a response's cost from binary labels; its formula is
    in no source used here, and this one, Haldane's and Anscombe's correction, is a reconstruction. For costs of
    standard deviation 1.5 its bias is within 0.02 from 4 labels on; plain log-odds are infinite where all agree.

    Raises:
        ValueError: fewer than one label, or counts outside 0 to ``labels``.
    """
    counts = np.asarray(yes, dtype=np.float64)
    if labels < 1 or np.any(counts < 0) or np.any(counts > labels):
        raise ValueError(f"counts must lie between 0 and the number of labels, {labels}, which is 1 or more")
    odds: FloatArray = np.log((counts + 0.5) / (labels - counts + 0.5))
    return odds
