"""A reward head on the reference's states, retrained against a policy's answers: APO's reward model made light."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from dualign.maths.adversarial import Comparisons, adversarial_comparisons, fit_linear_reward
from dualign.protocols import Adversary, Represents
from dualign.records import FloatArray, Group


def retrained_rewards(
    backend: Represents,
    groups: Sequence[Group],
    fresh: Sequence[Group],
    multipliers: FloatArray,
    adversary: Adversary,
) -> list[FloatArray]:
    """Return for each of the ``fresh`` groups the retrained rewards ``[response]``, in units of the groups' scores."""
    states, new = backend.states(groups), backend.states(fresh)
    scores = [group.reward - group.costs @ multipliers for group in groups]
    weights = [group.weight for group in groups]
    pairs = _preferences(states, scores, weights)
    golden = [rows[int(np.argmax(values))] for rows, values in zip(states, scores, strict=True)]
    game, told = _game(golden, new, weights)
    # A head on features of one size: the ridge then means the same for every model.
    spread = np.sqrt((np.concatenate(states) ** 2).mean(axis=0) - np.concatenate(states).mean(axis=0) ** 2)
    size = np.where(spread > 0, spread, 1.0)
    coefficient = adversary.coefficient * told
    joined = adversarial_comparisons(_scaled(pairs, size), _scaled(game, size), coefficient=coefficient)
    head = fit_linear_reward(joined, ridge=adversary.ridge) / size
    return [np.asarray(rows @ head) for rows in new]


def _preferences(states: Sequence[FloatArray], scores: Sequence[FloatArray], weights: Sequence[float]) -> Comparisons:
    """Return every pair of every group; pairs of a group share its weight."""
    differences, labels, shares = [], [], []
    for rows, values, weight in zip(states, scores, weights, strict=True):
        one, other = np.triu_indices(len(values), 1)
        differences.append(rows[one] - rows[other])
        labels.append(expit(values[one] - values[other]))
        shares.append(np.full(len(one), weight / len(one)))
    return Comparisons(np.concatenate(differences), np.concatenate(labels), np.concatenate(shares))


def _game(
    golden: Sequence[FloatArray], new: Sequence[FloatArray], weights: Sequence[float]
) -> tuple[Comparisons, float]:
    """Return each golden answer against the policy's, and the share of the weight that is left.

    A pair of equal states is a constant: it is left out.
    """
    differences = np.concatenate([best - rows for best, rows in zip(golden, new, strict=True)])
    shares = np.concatenate([np.full(len(rows), weight / len(rows)) for rows, weight in zip(new, weights, strict=True)])
    told = np.abs(differences).max(axis=1) > 0
    pairs = Comparisons(differences[told], np.ones(int(told.sum())), shares[told])
    return pairs, float(shares[told].sum() / shares.sum())


def _scaled(pairs: Comparisons, size: FloatArray) -> Comparisons:
    return Comparisons(pairs.differences / size, pairs.labels, pairs.weights)
