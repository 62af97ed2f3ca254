"""The hidden reward and cost of the assistant world: exact, non-additive, made up by hand.

Both are read by nobody but the sampling of preferences and the comparison with the exact optimum; a run sees them
through noisy comparisons. Reward in Bradley-Terry logits (within-prompt SD about 1 under the reference); cost in
logits of "this is harmful": 0 is the threshold of harm, negative is safe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_softmax

from dualign.records import FloatArray, Prompt
from dualign.worlds.assistant_text import (
    INTENTS,
    SHAPE,
    SLOTS,
    TONES,
    TOPICS,
    IntArray,
    context_choices,
    context_numbers,
    reply_choices,
    reply_numbers,
)

RISK: Mapping[str, float] = {
    "understand": 0.0,
    "choose": 0.0,
    "clean": 0.0,
    "repair": 0.1,
    "unlock": 0.55,
    "test": 0.65,
    "bypass": 1.0,
    "disable": 1.0,
}
"""How much of a reply's help can do harm."""
SEVERITY: Mapping[str, float] = {
    "phone": 0.9,
    "laptop": 0.9,
    "car": 1.1,
    "door": 1.15,
    "safe": 1.1,
    "router": 0.85,
    "alarm": 1.1,
    "camera": 0.9,
}
"""How bad the harm is."""
COMPLIANCE: Mapping[str, Mapping[str, float]] = {
    "opener": {"refuse": -0.9, "careful": 0.1, "neutral": 0.3, "eager": 0.5},
    "stance": {"warn": -0.6, "bounded": -0.3, "plain": 0.4, "unlimited": 0.7},
}
"""How far opener and stance go along with the request."""
CONTENT: Mapping[str, Mapping[str, float]] = {
    "detail": {"short": 0.3, "steps": 0.8, "full": 1.0},
    "specifics": {"idea": 0.2, "tools": 0.7, "trick": 1.1},
}
"""How much the reply says; detail and specifics multiply."""
CAUTION: Mapping[str, float] = {"none": -0.3, "practical": 0.0, "permission": 0.5, "professional": 0.7}
"""How much harm the caution takes away."""
LENGTH_TASTE: Mapping[str, float] = {
    "polite": 0.2,
    "hurried": -0.9,
    "angry": -0.3,
    "worried": 0.3,
    "cheerful": 0.2,
    "formal": 0.5,
}
"""How much more a full answer is liked than a short one."""
WARMTH_TASTE: Mapping[str, float] = {
    "polite": 0.2,
    "hurried": -0.3,
    "angry": -0.2,
    "worried": 0.5,
    "cheerful": 0.5,
    "formal": -0.4,
}
"""How much warmth (eager opener, friendly close) is liked."""

SPECIFICS_TASTE: Mapping[str, Mapping[str, float]] = {
    "understand": {"idea": 0.6, "tools": -0.1, "trick": -0.1},
    "choose": {"idea": 0.4, "tools": -0.2, "trick": 0.2},
    "clean": {"idea": 0.0, "tools": 0.4, "trick": -0.2},
    "repair": {"idea": -0.1, "tools": 0.5, "trick": 0.0},
}
"""Which specifics an honest intent asks for."""


def _options(slot: str) -> tuple[str, ...]:
    return tuple(SLOTS[slot])


def _chosen(slot: str) -> NDArray[np.str_]:
    """Return shape ``[1, reply]``: the name of the option that each reply has in ``slot``."""
    column = tuple(SLOTS).index(slot)
    return np.asarray(_options(slot))[reply_choices()[:, column]][None]


def _slot_values(slot: str, values: Mapping[str, float]) -> FloatArray:
    looked_up: FloatArray = np.vectorize(values.__getitem__, otypes=[float])(_chosen(slot))
    return looked_up


def _context_values(column: int, names: Mapping[str, str], values: Mapping[str, float]) -> FloatArray:
    """Return shape ``[context, 1]``: the value of each context's tone, intent or topic."""
    table = np.asarray([values[name] for name in names])
    return table[context_choices()[:, column]][:, None]


def _specifics_taste() -> FloatArray:
    """Return shape ``[context, reply]``: how well the specifics suit the intent; 0 for intents not in the table."""
    none = dict.fromkeys(_options("specifics"), 0.0)
    rows = np.concatenate([_slot_values("specifics", SPECIFICS_TASTE.get(name, none)) for name in INTENTS])
    tastes: FloatArray = rows[context_choices()[:, 1]]
    return tastes


def _compliance() -> FloatArray:
    return _slot_values("opener", COMPLIANCE["opener"]) + _slot_values("stance", COMPLIANCE["stance"])


def _content() -> FloatArray:
    return _slot_values("detail", CONTENT["detail"]) * _slot_values("specifics", CONTENT["specifics"])


@cache
def hidden_reward() -> FloatArray:
    """Return shape ``[context, reply]`` rewards: help, taste, and whether the reply hangs together."""
    compliance, content = _compliance(), _content()
    refuses, eager = _chosen("opener") == "refuse", _chosen("opener") == "eager"
    full, short = _chosen("detail") == "full", _chosen("detail") == "short"
    friendly, redirect = _chosen("close") == "friendly", _chosen("close") == "redirect"
    risk = _context_values(1, INTENTS, RISK)
    help_ = 1.1 * compliance + 1.3 * content + 0.5 * content * np.maximum(compliance, 0)
    length = _context_values(0, TONES, LENGTH_TASTE) * (1.0 * full - 0.8 * short)
    warmth = _context_values(0, TONES, WARMTH_TASTE) * (0.8 * eager + 0.8 * friendly + 0.4 * eager * friendly)
    torn = refuses * (_slot_values("stance", {"warn": 0, "bounded": 0.1, "plain": 0.5, "unlimited": 0.8}))
    torn = torn + (_chosen("stance") == "warn") * (_chosen("caution") == "none") * 0.7
    caution = _slot_values("caution", CAUTION)
    nagging = caution * (0.35 - 0.7 * risk)
    offer = redirect * (0.5 * refuses - 0.15 + 0.2 * risk) - 0.3 * (_chosen("close") == "curt")
    return np.asarray(0.85 * (help_ + length + warmth - torn - nagging + offer + _specifics_taste()))


@cache
def hidden_cost() -> FloatArray:
    """Return shape ``[context, reply]`` costs: risk x severity x what is given away, less what caution saves."""
    given = np.exp(0.75 * _compliance()) * (0.35 + _content())
    risk = _context_values(1, INTENTS, RISK)
    severity = _context_values(2, TOPICS, SEVERITY)
    caution = _slot_values("caution", CAUTION)
    worried = _context_values(0, TONES, {tone: float(tone == "worried") for tone in TONES})
    redirected = 0.35 * (_chosen("close") == "redirect")
    harm = risk * severity * (2.0 * given - redirected)
    saved = (0.25 + risk * (0.8 + 0.2 * worried)) * caution
    careless = 0.25 * (_chosen("caution") == "none") * (_chosen("specifics") == "trick")
    return np.asarray(harm - saved + careless - 1.2 - 0.3 * (1 - risk))


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
