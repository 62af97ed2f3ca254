"""What a method may ask of a backend, and what an objective tells the backend it needs.

A method knows these names and no backend. An objective is *pairwise loss x label mode x multipliers x per-response
columns*; the backend makes the log-ratios, the labels and the weights, and hands them over as a ``PairBatch``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dualign.records import Evaluation, FloatArray, Group, Prompt, Response

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Need(StrEnum):
    """What an objective wants beyond the log-ratio of each side of a pair."""

    WHOLE_BATCH = "whole-batch"
    """Weights that depend on all losses of an optimiser step (KLDPO); the backend makes two passes."""
    INPUT_EMBEDDINGS = "input-embeddings"
    """The gradient of each loss with respect to the embedding layer's output (WDPO)."""
    TOKENS = "tokens"
    """Log-probabilities token by token, and the mask of response tokens (PPO)."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of every pair of a batch."""

    log_ratio: Tensor
    """Shape ``[pair]``: log pi(y|x) - log pi_ref(y|x), summed over response tokens including EOS."""
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """Per-response columns that the objective named, each ``[pair]``."""


@dataclass(frozen=True, slots=True)
class PairBatch:
    """The pairs of one micro-batch."""

    first: Side
    second: Side
    label_logit: Tensor
    """Shape ``[pair]``: (r_lambda(first) - r_lambda(second)) / temperature; the label is its sigmoid."""
    weight: Tensor
    """Shape ``[pair]``: pairs of a group share the group's weight; the weights of one optimiser step sum to 1."""
    embedding_gradient: Callable[[Tensor], Tensor] | None = None
    """``[pair]`` losses -> ``[pair]`` squared norm of their gradient with respect to the input embeddings."""
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    """With ``Need.TOKENS``: ``log_prob``, ``reference`` and ``mask`` of shape ``[sequence, token]``."""


PairLoss: TypeAlias = "Callable[[Side, Side], Tensor]"
"""(preferred, other) -> one loss a pair, shape ``[pair]``."""

LabelMode: TypeAlias = "Callable[[Tensor, torch.Generator], Tensor]"
"""Logits of the labels -> probability that the first side wins, shape ``[pair]``."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What a fit minimises: the weighted mean over pairs of the label-softened ``loss``, plus ``penalty``."""

    loss: PairLoss
    labels: LabelMode
    multipliers: FloatArray
    """Shape ``[constraint]``, in the units of the groups' scores."""
    beta: float
    """The loss's own coefficient; the backend reports the slope of beta*h on the label's logit with it."""
    temperature: float = 1.0
    """Label temperature tau: beta_eff = tau * beta."""
    weigh: Callable[[Tensor, Tensor], Tensor] | None = None
    """(detached losses, weights) of a whole step -> weights; given only by objectives with ``Need.WHOLE_BATCH``."""
    penalty: Callable[[PairBatch, Tensor], Tensor] | None = None
    """(batch, losses) -> ``[pair]`` to be added; given only by objectives with ``Need.INPUT_EMBEDDINGS``."""
    columns: tuple[str, ...] = ()
    """Names of the per-response columns that ``loss`` reads."""
    name: str = "dpo"
    """Part of the journal's key, with every number above."""

    @property
    def needs(self) -> frozenset[Need]:
        """Return what the backend must provide beyond log-ratios."""
        asked = {Need.WHOLE_BATCH: self.weigh, Need.INPUT_EMBEDDINGS: self.penalty}
        return frozenset(need for need, given in asked.items() if given is not None)


@dataclass(frozen=True, slots=True)
class FitReport:
    """How a fit went."""

    steps: int
    loss: float
    """Mean loss of the last quarter of the steps."""
    slope: float
    """Regression slope of beta*h on the label's logit over the last quarter of the steps; 1 = fitted."""
    seconds: float
    history: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy as its backend knows it; methods pass it on and never look inside."""

    name: str
    state: Any = None
    """``tabular``: log-probabilities [prompt, response]; ``transformer``: its folder, none for the reference."""
    report: FitReport | None = None


class Backend(Protocol):
    """Fits policies and reads them."""

    def fit(
        self,
        groups: Sequence[Group],
        *,
        objective: Objective,
        reference: Policy,
        start: Policy | None,
        seed: int,
        name: str,
    ) -> Policy:
        """Return the policy that minimises ``objective`` on ``groups``.

        ``start`` is where the fit begins; none: the reference itself, by a fresh adapter.

        Raises:
            NumericalError: a loss or gradient is not finite; nothing of the step is applied.
            UsageError: the objective needs what this backend cannot give.
        """

    def sample(self, policy: Policy, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Response]]:
        """Return ``n`` responses for each prompt, draws of the policy at its temperature."""

    def log_probs(self, policy: Policy, groups: Sequence[Group]) -> list[FloatArray]:
        """Return for each group the ``[response]`` sums of log-probabilities, EOS included, in nats."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What answers are worth, in the units of the groups."""

    reward: FloatArray
    """Shape ``[prompt, response]``."""
    costs: FloatArray
    """Shape ``[prompt, response, constraint]``; 0 where a constraint does not look at the prompt."""
    inside: NDArray[np.bool_]
    """Shape ``[prompt, constraint]``: whether it looks at the prompt."""


Score: TypeAlias = Callable[[Sequence[Prompt], Sequence[Sequence[Response]]], Scores]
"""(prompts, as many responses to each) -> their scores."""


@dataclass(frozen=True, slots=True)
class Problem:
    """All that a method is given; scores, limits and beta are in one system of units."""

    backend: Backend
    groups: Sequence[Group]
    limits: FloatArray
    """Shape ``[constraint]``."""
    reference: Policy
    evaluate: Callable[[Policy], Evaluation]
    """Measures a policy on the tune prompts; a policy that was measured is looked up."""
    beta: float
    seed: int
    margin: Callable[[Evaluation], FloatArray] | None = None
    """Evaluation -> shape ``[constraint]``: the dual aims at ``limits - margin``; none: exact, margin 0."""
    shares: FloatArray | None = None
    """Shape ``[constraint]``: share of the groups' weight that lies in each limit's slice; none: limits on all."""
    cost_units: FloatArray | None = None
    """Shape ``[constraint]``: what a cost of 1 is in raw units; none: the costs are raw."""
    reward_unit: float = 1.0
    """What a reward of 1 is in raw units."""
    score: Score | None = None
    """Scores answers that a method samples itself; none: the groups hold all answers there are."""
    rounds: int | None = None
    """Policies to measure at the most, for methods that no dual rule ends; none: the method's own number."""

    def raw_multipliers(self, multipliers: FloatArray) -> FloatArray:
        """Return multipliers in raw units: those of these scores, times the reward's unit, over the costs'."""
        return (
            multipliers * self.reward_unit
            if self.cost_units is None
            else (multipliers * self.reward_unit / self.cost_units)
        )


@runtime_checkable
class Informs(Protocol):
    """A backend that can tell what a prompt adds to the probability of a response."""

    def mutual_information(self, policy: Policy, groups: Sequence[Group]) -> list[FloatArray]:
        """Return for each group ``[response]``: (log pi(y|x) - log pi(y)) / |y|, in nats a token.

        pi(y) is a model's probability of the response after an empty prompt in its template; of a table, where a
        response is one token, the mean over the prompts that can get a response of the same text.
        """


@runtime_checkable
class Contrasts(Protocol):
    """A backend whose log-probabilities are rounded, and that can set two policies side by side."""

    def log_ratios(self, policy: Policy, reference: Policy, groups: Sequence[Group]) -> list[FloatArray]:
        """Return for each group ``[response]``: log pi(y|x) - log pi_ref(y|x), EOS included, in nats.

        Both are read in the very same batches, so that policies of equal weights have a ratio of exactly 0.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPolicyObjective:
    """What an on-policy step raises: ``scale * E[reward - multipliers . costs] - kl * KL(policy || reference)``."""

    multipliers: FloatArray
    """Shape ``[constraint]``, in the units of the groups' scores."""
    kl: float
    """Strength of the KL term, kappa; the policy that is sought is the Gibbs policy of beta = kl / scale."""
    scale: float = 1.0
    """Factor of the relabelled reward; 1 / (1 + multiplier) in Safe RLHF, which keeps advantages bounded."""
    inflation: float = 0.0
    """q: ``E[cost]`` becomes ``E[cost] + q SD(cost)``, by the cost's influence function. 0: the plain cost."""
    step: float = 0.5
    """Share in (0, 1] of the way that one step goes, in log-probabilities, to what is best for these multipliers."""


@runtime_checkable
class Improves(Protocol):
    """A backend that can move a policy by what the policy's own answers score."""

    def improve(
        self, policy: Policy, groups: Sequence[Group], *, objective: OnPolicyObjective, reference: Policy, name: str
    ) -> Policy:
        """Return ``policy`` after one step that raises ``objective``.

        ``groups`` hold all responses of their prompts and their scores. The report's history holds one row: ``moved``,
        the largest change of a log-probability; ``converged`` 1 or 0; and of the policy *before* the step ``cost_K``
        and ``cost_sd_K`` for every constraint K, over all answers to all prompts.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPolicyTraining:
    """A stretch of on-policy training on sampled answers; multipliers are in the units of the groups' scores."""

    method: str
    estimator: Literal["critic", "leave-one-out"]
    """Advantages by token from critics (PPO), or the answer's return less that of the prompt's other answers."""
    aim: Callable[[FloatArray], OnPolicyObjective]
    """Multipliers -> what a step raises."""
    follow: Callable[[FloatArray, FloatArray, FloatArray], FloatArray]
    """(multipliers, means, SDs of the costs of late answers) -> multipliers after one step; all ``[constraint]``."""
    multipliers: FloatArray
    """Where a policy that was not trained on its answers before begins."""
    cost_units: FloatArray
    """Shape ``[constraint]``: a multiplier of 1 in raw units. The KL of a cost's stream is in its unit."""
    settings: Mapping[str, float]
    """``steps``, ``total`` (steps of the whole training), ``prompts`` a step, ``answers`` a prompt, ``updates`` a
    step, ``critic_rate``, ``window`` (answers that a cost's mean is over), and whatever else decides the result."""


@runtime_checkable
class TrainsOnPolicy(Protocol):
    """A backend that can train a policy on answers that it samples from it and has scored."""

    def train_on_policy(
        self,
        policy: Policy,
        groups: Sequence[Group],
        *,
        training: OnPolicyTraining,
        score: Score,
        reference: Policy,
        seed: int,
        name: str,
    ) -> Policy:
        """Return ``policy`` after ``training`` on the prompts of ``groups``.

        Optimiser, critics, multipliers and recent costs go on from where ``policy``'s own training left them. The
        report's history has a row a step, with ``multiplier_K``, ``cost_K`` (of late answers), ``reward`` and ``kl``.

        Raises:
            NumericalError: a loss or a gradient is not finite.
        """


@runtime_checkable
class Selects(Protocol):
    """A backend that can answer with the best of several answers."""

    def best_of(
        self, groups: Sequence[Group], *, multipliers: FloatArray, n: int, reference: Policy, name: str
    ) -> Policy:
        """Return the policy that draws ``n`` answers of ``reference`` and gives one with the largest relabelled reward.

        ``groups`` hold the scores of all responses.
        """


@runtime_checkable
class Merges(Protocol):
    """A backend that can put policies together without training."""

    def merge(self, first: Policy, second: Policy, *, share: float, name: str) -> Policy:
        """Return ``(1 - share) first + share second``: of tables in log-probabilities, of models in weights."""


@dataclass(frozen=True, slots=True)
class Adversary:
    """How a reward model is retrained against a policy's answers."""

    coefficient: float
    """Weight of the golden answers' lead over the policy's, the preferences' being 1."""
    answers: int
    """Answers of the policy to each prompt, where it is sampled."""
    ridge: float
    """Penalty of a head on features, where there are no tables."""


@runtime_checkable
class Rejudges(Protocol):
    """A backend that can retrain a reward model against a policy."""

    def rejudge(
        self, policy: Policy, groups: Sequence[Group], *, multipliers: FloatArray, adversary: Adversary, name: str
    ) -> list[Group]:
        """Return groups of the policy's answers (of a table: all answers) whose reward is the retrained one.

        Preferences are the pairs of ``groups``: the first of two answers wins by the sigmoid of the difference in
        reward - multipliers . costs. The golden answer is each group's best by it. Costs are 0 in what is returned:
        the rewards have taken them in.
        """


@runtime_checkable
class Represents(Protocol):
    """A backend that has features of answers."""

    def states(self, groups: Sequence[Group]) -> list[FloatArray]:
        """Return for each group ``[response, width]``: the reference's states before a response's tokens, averaged."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Decoding settings; they are part of the certificate's claim."""

    temperature: float = 1.0
    """The policy *is* softmax(logits / temperature): sampling, log-probabilities, loss and KL all use it."""
    max_new_tokens: int = 128
    top_k: int = 0
    """0 = off: unbiased draws."""
    top_p: float = 1.0
    batch_size: int = 32
    """Sequences decoded together; changes speed, and samples only through rounding."""


class Sampler(Protocol):
    """Draws responses of a policy."""

    def generate(
        self, policy: Policy, prompts: Sequence[Prompt], n: int, *, sampling: Sampling, seed: int, stage: str
    ) -> list[list[Response]]:
        """Return ``n`` responses a prompt, with tokens and log-probabilities.

        Each draw's randomness is keyed by (seed, stage, prompt id, sample index): the batch and the order of
        the prompts change no draw, but through rounding.
        """


Direction = Literal["reward", "cost"]


@runtime_checkable
class Scorer(Protocol):
    """Scores responses; a scorer that fails raises ``ScorerError`` and never returns a number."""

    @property
    def id(self) -> str:
        """What scorer this is, for reports and journal keys."""

    @property
    def revision(self) -> str:
        """Hash of all that determines its numbers."""

    @property
    def direction(self) -> Direction:
        """``reward``: up is good; ``cost``: up is bad. Stated by the caller, never read from a model."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[response]`` scores in raw units; ``prompts`` and ``responses`` are parallel."""


def words_read(scorer: Scorer) -> int | None:
    """Return how many words of an answer a scorer reads at the most; none: all, as far as it says."""
    found = getattr(scorer, "words_read", None)
    return found if isinstance(found, int) else None


def fewest(limits: Iterable[int | None]) -> int | None:
    """Return the least of the limits that there are; none: there are none."""
    return min((limit for limit in limits if limit is not None), default=None)
