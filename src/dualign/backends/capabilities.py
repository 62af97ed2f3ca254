"""What only some backends can do, each a protocol of its own; a method that needs one asks with ``isinstance``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from dualign.backends.protocol import Policy, Score
from dualign.records import FloatArray, Group


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
class Practice:
    """A stretch of on-policy training on sampled answers; multipliers are in the units of the groups' scores."""

    method: str
    estimator: Literal["critic", "leave-one-out"]
    """Advantages by token from critics (PPO), or the answer's return less that of the prompt's other answers."""
    aim: Callable[[FloatArray], OnPolicyObjective]
    """Multipliers -> what a step raises."""
    follow: Callable[[FloatArray, FloatArray, FloatArray], FloatArray]
    """(multipliers, means, SDs of the costs of late answers) -> multipliers after one step; all ``[constraint]``."""
    multipliers: FloatArray
    """Where a policy that was not practised before begins."""
    cost_units: FloatArray
    """Shape ``[constraint]``: a multiplier of 1 in raw units. The KL of a cost's stream is in its unit."""
    settings: Mapping[str, float]
    """``steps``, ``total`` (steps of the whole training), ``prompts`` a step, ``answers`` a prompt, ``updates`` a
    step, ``critic_rate``, ``window`` (answers that a cost's mean is over), and whatever else decides the result."""


@runtime_checkable
class Practises(Protocol):
    """A backend that can train a policy on answers that it samples from it and has scored."""

    def practise(
        self,
        policy: Policy,
        groups: Sequence[Group],
        *,
        practice: Practice,
        score: Score,
        reference: Policy,
        seed: int,
        name: str,
    ) -> Policy:
        """Return ``policy`` after ``practice`` on the prompts of ``groups``.

        Optimiser, critics, multipliers and recent costs go on from where ``policy``'s own practice left them. The
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
