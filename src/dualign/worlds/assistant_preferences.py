"""What people would have written down in the assistant world: demonstrations, comparisons and safety flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, log_softmax

from dualign.records import FloatArray, Prompt
from dualign.worlds.assistant_scores import RISK
from dualign.worlds.assistant_text import (
    SHAPE,
    SLOTS,
    IntArray,
    context_numbers,
    reply_choices,
    reply_numbers,
)

HABITS: Mapping[str, Mapping[str, float]] = {
    "opener": {"refuse": -0.6, "careful": 0.0, "neutral": 0.2, "eager": 0.4},
    "stance": {"warn": -0.4, "bounded": 0.1, "plain": 0.4, "unlimited": -0.1},
    "detail": {"short": 0.0, "steps": 0.3, "full": 0.0},
    "specifics": {"idea": 0.0, "tools": 0.3, "trick": 0.0},
    "caution": {"none": 0.2, "practical": 0.3, "permission": 0.0, "professional": -0.2},
    "close": {"curt": 0.0, "friendly": 0.3, "redirect": -0.2},
}
"""Log-weights with which the demonstrators choose in each slot; they refuse at times and comply at times."""
SCRUPLES: Mapping[str, Mapping[str, float]] = {
    "opener": {"refuse": 0.5, "careful": 0.3},
    "stance": {"warn": 0.4, "bounded": 0.2},
    "caution": {"permission": 0.2, "professional": 0.2},
    "close": {"redirect": 0.3},
}
"""What a fully risky intent adds to those log-weights."""


def demonstrator_log_probs(prompt: Prompt) -> FloatArray:
    """Return shape ``[reply]`` log-probabilities of the demonstrators, slots drawn independently."""
    risk = RISK[prompt.columns["intent"]]
    total = np.zeros(int(np.prod(SHAPE)))
    for column, (slot, options) in enumerate(SLOTS.items()):
        weights = [HABITS[slot][name] + risk * SCRUPLES.get(slot, {}).get(name, 0.0) for name in options]
        total += log_softmax(np.asarray(weights))[reply_choices()[:, column]]
    return total


def demonstrations(prompts: Sequence[Prompt], *, each: int, seed: int) -> list[tuple[Prompt, int]]:
    """Return (prompt, number of a reply): ``each`` independent draws of the demonstrators a prompt."""
    generator = np.random.default_rng([seed, 1])
    draws = []
    for prompt in prompts:
        chances = np.exp(demonstrator_log_probs(prompt))
        draws += [(prompt, int(reply)) for reply in generator.choice(len(chances), each, p=chances)]
    return draws


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Pairs of replies as people judged them; every array has one row a pair."""

    contexts: IntArray
    replies: IntArray
    """Shape ``[pair, 2]``."""
    first_better: FloatArray
    """1 where the first reply was called more helpful, else 0."""
    first_worse: FloatArray
    """1 where the first reply was called less safe, else 0."""
    unsafe: FloatArray
    """Shape ``[pair, 2]``: 1 where the reply was flagged unsafe, else 0."""

    def __len__(self) -> int:
        return len(self.contexts)

    def part(self, rows: IntArray | slice) -> Comparisons:
        """Return these rows alone."""
        return Comparisons(
            self.contexts[rows],
            self.replies[rows],
            self.first_better[rows],
            self.first_worse[rows],
            self.unsafe[rows],
        )


def compare(contexts: IntArray, replies: IntArray, *, reward: FloatArray, cost: FloatArray, seed: int) -> Comparisons:
    """Return independent Bernoulli judgements of each pair, by Bradley and Terry (1952) on the hidden scores.

    Args:
        contexts: shape ``[pair]``, rows of the score tables.
        replies: shape ``[pair, 2]``, columns of the score tables.
        reward: shape ``[context, reply]``; the first is better with probability sigmoid(difference).
        cost: shape ``[context, reply]``; the first is less safe with probability sigmoid(difference), and each
            reply is flagged unsafe with probability sigmoid(cost), which fixes the cost's zero.
        seed: of the judgements.
    """
    generator = np.random.default_rng([seed, 2])
    rewards, costs = reward[contexts[:, None], replies], cost[contexts[:, None], replies]

    def judged(logit: FloatArray) -> FloatArray:
        won: FloatArray = (generator.random(logit.shape) < expit(logit)).astype(float)
        return won

    return Comparisons(
        contexts,
        replies,
        judged(rewards[:, 0] - rewards[:, 1]),
        judged(costs[:, 0] - costs[:, 1]),
        judged(costs),
    )


def pairs_of(prompts: Sequence[Prompt], replies: Sequence[Sequence[str]]) -> tuple[IntArray, IntArray]:
    """Return contexts ``[pair]`` and reply numbers ``[pair, 2]``: consecutive replies of each prompt, two by two.

    A pair of identical replies says nothing and is left out.
    """
    contexts = context_numbers(prompts)
    rows, pairs = [], []
    for context, texts in zip(contexts, replies, strict=True):
        numbers = reply_numbers(texts)
        for first, second in zip(numbers[::2], numbers[1::2], strict=False):
            if first != second:
                rows.append(context)
                pairs.append((first, second))
    return np.asarray(rows, dtype=np.int64), np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
