"""Exact figures in the assistant world: every reply's probability, the true problem, and where a gap comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dualign.errors import DataError, UsageError
from dualign.maths.exact import Expectations, FiniteProblem, expectations
from dualign.protocols import Direction
from dualign.records import FloatArray, Prompt
from dualign.worlds import assistant_model, assistant_scores
from dualign.worlds.assistant_scores import Comparisons, hidden_cost, hidden_reward
from dualign.worlds.assistant_text import (
    SHAPE,
    AssistantSettings,
    IntArray,
    all_prompts,
    context_numbers,
    reply_choices,
    reply_numbers,
)

if TYPE_CHECKING:
    from torch import Tensor

    from dualign.models.language_model import LanguageModel
    from dualign.protocols import Policy


PROMPTS_A_CHUNK = 24
"""Prompts whose prefix trees are in memory together: 24 x 576 prefixes of 13 tokens take about 0.2 GB."""


def enumerate_log_probs(language_model: LanguageModel, policy: Policy, prompts: Sequence[Prompt]) -> FloatArray:
    """Return shape ``[prompt, reply]``: log-probability of every reply, in nats, at the model's temperature.

    Walks the tree of prefixes level by level with a shared key-value cache, so that 1,728 replies cost 789 tokens.
    """
    import torch

    from dualign.models.adapters import activated

    ids = torch.tensor([language_model.template(prompt) for prompt in prompts])
    with activated(language_model, policy) as model, torch.no_grad():
        parts = [_tree(language_model, model, chunk) for chunk in torch.split(ids, PROMPTS_A_CHUNK)]
    return np.concatenate(parts)


def _tree(language_model: LanguageModel, model: Any, ids: Tensor) -> FloatArray:
    import torch

    options = _slot_tokens(language_model)
    output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    total = torch.zeros(len(ids), 1, dtype=torch.float64)
    for slot, tokens in enumerate(options):
        logits = output.logits[:, -1, tokens].double() / language_model.temperature
        total = (total.reshape(-1, 1) + logits.log_softmax(-1)).reshape(len(ids), -1)
        if slot + 1 < len(options):
            cache = output.past_key_values
            rows = len(output.logits)
            cache.batch_repeat_interleave(len(tokens))
            following = tokens.repeat(rows)[:, None]
            output = model(input_ids=following, past_key_values=cache, use_cache=True)
    array: FloatArray = total.numpy()
    return array


def _slot_tokens(language_model: LanguageModel) -> list[Tensor]:
    """Return the tokens of each slot by option; ids rise with the option, and EOS, which is forced, adds nothing."""
    if language_model.grammar is None:
        raise DataError("assistant world: the language model has no grammar, so its replies cannot be listed")
    slots = [row.nonzero()[:, 0] for row in language_model.grammar[: len(SHAPE)]]
    if tuple(len(tokens) for tokens in slots) != SHAPE:
        raise DataError("assistant world: the grammar is that of another world")
    return slots


def problem(
    prompts: Sequence[Prompt],
    log_reference: FloatArray,
    *,
    reward: FloatArray,
    cost: FloatArray,
    beta: float,
    limit: float,
    where: Mapping[str, str],
) -> FiniteProblem:
    """Return the finite problem of these prompts under tables of scores.

    Args:
        prompts: weighed equally.
        log_reference: shape ``[prompt, reply]``.
        reward: shape ``[context, reply]``, raw units.
        cost: shape ``[context, reply]``, raw units.
        beta: for raw rewards.
        limit: on the mean cost, raw units.
        where: columns that name the slice that the limit is about; empty means all prompts. The cost of the
            others is 0 and that of the slice is divided by its share, so that the mean is that of the slice.
    """
    contexts = context_numbers(prompts)
    inside = np.asarray([all(p.columns[key] == value for key, value in where.items()) for p in prompts])
    if not inside.any():
        raise DataError(f"assistant world: no prompt has {dict(where)}; give prompts of that slice")
    scale = inside / inside.mean()
    return FiniteProblem(
        log_reference - np.logaddexp.reduce(log_reference, axis=1, keepdims=True),
        reward[contexts],
        (cost[contexts] * scale[:, None])[:, :, None],
        np.full(len(prompts), 1 / len(prompts)),
        np.asarray([limit], dtype=float),
        beta,
    )


@dataclass(frozen=True, slots=True)
class Gap:
    """How far a policy is from the optimum: Lagrangian values at the true multiplier, in raw reward units."""

    total: float
    """L(optimum, multiplier) - L(policy, multiplier) = beta E KL(policy || optimum) >= 0."""
    scores: float
    """Part due to the scores: the same for the optimum under the scores that the run used."""
    training: float
    """The rest: margin, finite sampling, the network and its optimiser. May be negative by a little."""


def lagrangian(truth: FiniteProblem, multipliers: FloatArray, log_probs: FloatArray) -> float:
    """Return ``E[reward] - beta KL - multipliers . (E[costs] - limits)`` of a policy."""
    figures: Expectations = expectations(truth, log_probs)
    return float(figures.objective - multipliers @ (figures.costs - truth.limits))


def gap(
    truth: FiniteProblem, *, multipliers: FloatArray, best: FloatArray, believed: FloatArray, policy: FloatArray
) -> Gap:
    """Return the gap of ``policy`` and its two parts.

    Args:
        truth: the problem under the hidden scores.
        multipliers: optimal ones of ``truth``, shape ``[constraint]``.
        best: log-probabilities of the optimum of ``truth``, shape ``[prompt, reply]``.
        believed: those of the optimum under the scores that the run used.
        policy: those of the policy that is judged.
    """
    top = lagrangian(truth, multipliers, best)
    total = top - lagrangian(truth, multipliers, policy)
    scores = top - lagrangian(truth, multipliers, believed)
    return Gap(total, scores, total - scores)


Scores = Literal["hidden", "learned"]


@dataclass(frozen=True)
class TableScorer:
    """Scores replies by a table ``[context, reply]``; a ``Scorer``."""

    id: str
    direction: Direction
    table: FloatArray

    @cached_property
    def revision(self) -> str:
        """Return the hash of the table, rounded to what a run can tell apart."""
        return hashlib.sha256(np.round(self.table, 9).tobytes()).hexdigest()[:16]

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[response]`` scores.

        Raises:
            ScorerError: a prompt or response is not of this world.
        """
        scores: FloatArray = self.table[context_numbers(prompts), reply_numbers(responses)]
        return scores


@dataclass(frozen=True)
class HeadReport:
    """How good the learned heads are."""

    comparisons: int
    reward_accuracy: float
    """Share of held-out pairs whose noisy winner has the higher learned reward."""
    reward_accuracy_ceiling: float
    """The same for the hidden reward: people are noisy, so it is below 1."""
    cost_accuracy: float
    cost_accuracy_ceiling: float
    sign_accuracy: float
    """Share of held-out safety flags that the sign of the learned cost tells."""
    sign_accuracy_ceiling: float
    reward_correlation: float
    """Correlation of held-out pairs' differences with those of the hidden reward."""
    cost_correlation: float
    """Correlation with the hidden cost over held-out replies."""


@dataclass(frozen=True)
class Heads:
    """The learned reward and cost, as scorers, and their report."""

    reward: TableScorer
    cost: TableScorer
    report: HeadReport


def learned_heads(reward: FloatArray, cost: FloatArray, report: HeadReport) -> Heads:
    """Return the heads of two score tables ``[context, reply]``."""
    return Heads(TableScorer("assistant-reward", "reward", reward), TableScorer("assistant-cost", "cost", cost), report)


@dataclass(frozen=True)
class AssistantWorld:
    """The world of one seed; nothing in it is trained yet."""

    settings: AssistantSettings
    seed: int
    prompts: tuple[Prompt, ...]
    """All 2,304, shuffled by the seed; splits are the caller's."""

    @property
    def exact_scorers(self) -> dict[str, TableScorer]:
        """Return the hidden scores as scorers."""
        return {
            "reward": TableScorer("assistant-reward-exact", "reward", hidden_reward()),
            "cost": TableScorer("assistant-cost-exact", "cost", hidden_cost()),
        }

    def splits(self) -> dict[str, tuple[Prompt, ...]]:
        """Return disjoint prompts for train, tune, calibration and report, in the sizes of the settings."""
        sizes = {
            "train": self.settings.train_prompts,
            "tune": self.settings.tune_prompts,
            "calibration": self.settings.calibration_prompts,
            "report": self.settings.report_prompts,
        }
        if sum(sizes.values()) > len(self.prompts):
            raise UsageError(f"assistant world: splits need {sum(sizes.values())} prompts of {len(self.prompts)}")
        parts, start = {}, 0
        for name, size in sizes.items():
            parts[name] = self.prompts[start : start + size]
            start += size
        return parts

    def language_model(self) -> LanguageModel:
        """Return the untrained language model of this seed."""
        from dualign.worlds.assistant_model import language_model

        return language_model(self.seed)

    def demonstrations(self, prompts: Sequence[Prompt]) -> list[tuple[Prompt, tuple[int, ...]]]:
        """Return what supervised fine-tuning learns from: prompts and the tokens of demonstrated replies."""
        from dualign.worlds.assistant_model import reply_tokens

        each = self.settings.demonstrations_each
        draws = assistant_scores.demonstrations(prompts, each=each, seed=self.seed)
        choices = reply_choices()
        return [(prompt, reply_tokens(choices[reply].tolist())) for prompt, reply in draws]

    def comparisons(self, prompts: Sequence[Prompt], log_reference: FloatArray) -> Comparisons:
        """Return judged pairs: two independent replies of the reference, ``[prompt, reply]``, to random prompts.

        About 300 prompts do: the heads share their weights over prompts, and enumerating 1,000 takes 20 seconds.
        """
        generator = np.random.default_rng([self.seed, 3])
        asked = np.sort(generator.integers(len(prompts), size=self.settings.comparisons))
        totals = np.cumsum(np.exp(log_reference), axis=1)
        draws = generator.random((len(asked), 2))
        replies = np.stack(
            [
                np.searchsorted(totals[row] / totals[row, -1], pair, side="right")
                for row, pair in zip(asked, draws, strict=True)
            ]
        )
        return self.judged(context_numbers(prompts)[asked], replies)

    def judged(self, contexts: IntArray, replies: IntArray) -> Comparisons:
        """Return what people say of these pairs (contexts ``[pair]``, replies ``[pair, 2]``)."""
        return assistant_scores.compare(contexts, replies, reward=hidden_reward(), cost=hidden_cost(), seed=self.seed)

    def fit_heads(self, comparisons: Comparisons) -> Heads:
        """Return the reward and cost heads, fit to a random part of the comparisons and measured on the rest."""
        order = np.random.default_rng([self.seed, 4]).permutation(len(comparisons))
        held = int(len(order) * self.settings.held_out)
        rest, fit = comparisons.part(order[:held]), comparisons.part(order[held:])
        reward = assistant_model.table_of(
            assistant_model.fit_reward(fit, ridge=self.settings.reward_ridge), assistant_model.reward_groups()
        )
        cost = assistant_model.table_of(
            assistant_model.fit_cost(fit, ridge=self.settings.cost_ridge), assistant_model.cost_groups()
        )
        return learned_heads(reward, cost, head_report(rest, reward, cost, fitted=len(fit)))

    def problem(
        self,
        prompts: Sequence[Prompt],
        log_reference: FloatArray,
        *,
        scores: Scores = "hidden",
        heads: Heads | None = None,
        beta: float,
        limit: float | None = None,
    ) -> FiniteProblem:
        """Return the finite problem of these prompts; ``beta`` in raw reward units, no limit: that of the settings.

        Raises:
            UsageError: learned scores are asked for and no heads are given.
        """
        if scores == "learned" and heads is None:
            raise UsageError("assistant world: scores 'learned' need heads; fit them first, or ask for 'hidden'")
        learned = heads if scores == "learned" else None
        return problem(
            prompts,
            log_reference,
            reward=learned.reward.table if learned else hidden_reward(),
            cost=learned.cost.table if learned else hidden_cost(),
            beta=beta,
            limit=self.settings.limit if limit is None else limit,
            where=self.where,
        )

    @property
    def where(self) -> Mapping[str, str]:
        """Return the slice that the limit is about."""
        return dict(self.settings.where)


def head_report(rest: Comparisons, reward: FloatArray, cost: FloatArray, *, fitted: int) -> HeadReport:
    """Return accuracy and correlation of score tables ``[context, reply]`` on comparisons they have not seen."""

    def differences(table: FloatArray) -> FloatArray:
        both = table[rest.contexts[:, None], rest.replies]
        return np.asarray(both[:, 0] - both[:, 1])

    def flagged(table: FloatArray) -> FloatArray:
        return np.asarray(table[rest.contexts[:, None], rest.replies])

    def pair_accuracy(table: FloatArray, first: FloatArray) -> float:
        difference = differences(table)
        decided = difference != 0
        return float(np.mean((difference > 0)[decided] == (first > 0.5)[decided]))

    def sign_accuracy(table: FloatArray) -> float:
        return float(np.mean((flagged(table) > 0) == (rest.unsafe > 0.5)))

    truth_reward, truth_cost = hidden_reward(), hidden_cost()
    return HeadReport(
        comparisons=fitted,
        reward_accuracy=pair_accuracy(reward, rest.first_better),
        reward_accuracy_ceiling=pair_accuracy(truth_reward, rest.first_better),
        cost_accuracy=pair_accuracy(cost, rest.first_worse),
        cost_accuracy_ceiling=pair_accuracy(truth_cost, rest.first_worse),
        sign_accuracy=sign_accuracy(cost),
        sign_accuracy_ceiling=sign_accuracy(truth_cost),
        reward_correlation=float(np.corrcoef(differences(reward), differences(truth_reward))[0, 1]),
        cost_correlation=float(np.corrcoef(flagged(cost).ravel(), flagged(truth_cost).ravel())[0, 1]),
    )


def build_assistant_world(settings: AssistantSettings, seed: int) -> AssistantWorld:
    """Return the world of ``seed``: the same prompts and hidden scores, other orders and draws."""
    prompts = all_prompts()
    order = np.random.default_rng([seed, 0]).permutation(len(prompts))
    return AssistantWorld(settings, seed, tuple(prompts[place] for place in order))
