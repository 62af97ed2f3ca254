"""What a method may ask of a backend, and what an objective tells the backend it needs.

A method knows these names and no backend. An objective is *pairwise loss x label mode x multipliers x per-response
columns*; the backend makes the log-ratios, the labels and the weights, and hands them over as a ``PairBatch``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

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
