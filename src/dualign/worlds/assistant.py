"""The assistant world: a small problem with every stage of a real one, whose exact optimum is known.

Prompts ask for help with everyday things, some of them not their own; replies have six slots. People demonstrate,
compare and flag; a small Llama learns from them; what it learns can be enumerated and held against the truth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from dualign.errors import UsageError
from dualign.maths.finite import FiniteProblem
from dualign.records import FloatArray, Prompt
from dualign.scorers.protocol import Direction
from dualign.worlds import assistant_exact, assistant_heads, assistant_preferences
from dualign.worlds.assistant_preferences import Comparisons
from dualign.worlds.assistant_scores import hidden_cost, hidden_reward
from dualign.worlds.assistant_settings import AssistantSettings
from dualign.worlds.assistant_text import IntArray, all_prompts, context_numbers, reply_choices, reply_numbers

if TYPE_CHECKING:
    from dualign.engine.language_model import LanguageModel

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
        draws = assistant_preferences.demonstrations(prompts, each=each, seed=self.seed)
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
        return assistant_preferences.compare(
            contexts, replies, reward=hidden_reward(), cost=hidden_cost(), seed=self.seed
        )

    def fit_heads(self, comparisons: Comparisons) -> Heads:
        """Return the reward and cost heads, fit to a random part of the comparisons and measured on the rest."""
        order = np.random.default_rng([self.seed, 4]).permutation(len(comparisons))
        held = int(len(order) * self.settings.held_out)
        rest, fit = comparisons.part(order[:held]), comparisons.part(order[held:])
        reward = assistant_heads.table_of(
            assistant_heads.fit_reward(fit, ridge=self.settings.reward_ridge), assistant_heads.reward_groups()
        )
        cost = assistant_heads.table_of(
            assistant_heads.fit_cost(fit, ridge=self.settings.cost_ridge), assistant_heads.cost_groups()
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
        return assistant_exact.problem(
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
