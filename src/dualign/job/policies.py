"""Policies that a method asks for, each a phase of the journal: fitted, trained on-policy, merged, selecting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from dualign.errors import UsageError
from dualign.hashing import canonical_digest
from dualign.job.phases import RECORD, Columns, Job, folder_made, key_of, sampled, table_of, write_choice
from dualign.maths.adversarial import Comparisons, adversarial_comparisons, fit_linear_reward
from dualign.protocols import (
    Adversary,
    FitReport,
    Informs,
    Merges,
    Objective,
    OnPolicyTraining,
    Policy,
    Represents,
    TrainsOnPolicy,
)
from dualign.records import FloatArray, Group, Prompt, Response
from dualign.runs.store import read_json, write_json


@dataclass(frozen=True)
class JournalledBackend:
    """The job's backend as methods see it: each policy is a phase, keyed by all that it is made from."""

    job: Job

    def fit(self, groups: Sequence[Group], *, name: str, **given: Any) -> Policy:
        """Return the fitted policy; arguments are those of the backend."""
        multipliers = np.array2string(given["objective"].multipliers, precision=3)
        return self._policy(
            name,
            f"fitting {name} at normalised multipliers {multipliers}",
            lambda folder: self.job.backend_at(folder).fit(groups, name="policy", **given),
            {"identity": self.job.identity, "groups": groups, **given},
        )

    def train_on_policy(
        self, policy: Policy, groups: Sequence[Group], *, training: OnPolicyTraining, name: str, **given: Any
    ) -> Policy:
        """Return ``policy`` after on-policy training; other arguments are those of the backend.

        Raises:
            UsageError: the backend cannot.
        """
        aim = training.aim(training.multipliers)

        def train(folder: Path) -> Policy:
            backend = self.job.backend_at(folder)
            if not isinstance(backend, TrainsOnPolicy):
                raise UsageError("method.name: needs training on answers of the policy, which this backend has not")
            return backend.train_on_policy(policy, groups, training=training, name="policy", **given)

        inputs = {
            "identity": self.job.identity,
            "groups": groups,
            "practice": [training.method, training.estimator, training.multipliers, dict(training.settings)],
            "aim": [aim.kl, aim.scale, aim.inflation],
            "scorers": [[scorer.id, scorer.revision] for scorer in self.job.scorers.values()],
            "reference": given["reference"],
            "start": policy,
            "seed": given["seed"],
        }
        told = f"training {name} on its own answers, {training.settings['steps']:.0f} steps"
        return self._policy(name, told, train, inputs)

    def merge(self, first: Policy, second: Policy, *, share: float, name: str) -> Policy:
        """Return ``(1 - share) first + share second`` in weights.

        Raises:
            UsageError: the backend cannot.
        """

        def merged(folder: Path) -> Policy:
            backend = self.job.backend_at(folder)
            if not isinstance(backend, Merges):
                raise UsageError("method.name: needs to merge policies, which this backend cannot")
            return backend.merge(first, second, share=share, name="policy")

        return self._policy(name, "", merged, {"merge": [first, second], "share": share})

    def best_of(
        self, groups: Sequence[Group], *, multipliers: FloatArray, n: int, reference: Policy, name: str
    ) -> Policy:
        """Return the policy that draws ``n`` answers of ``reference`` and gives one with the largest relabelled score.

        ``groups`` only fix the units.
        """

        def written(folder: Path) -> Policy:
            state = write_choice(folder / "policy", n, multipliers)
            return Policy(name, state, FitReport(0, float("nan"), float("nan"), 0.0))

        inputs = {"best of": n, "multipliers": multipliers, "reference": reference, "groups": groups}
        return self._policy(name, "", written, inputs)

    def rejudge(
        self, policy: Policy, groups: Sequence[Group], *, multipliers: FloatArray, adversary: Adversary, name: str
    ) -> list[Group]:
        """Return new answers of ``policy`` with the rewards of a head that was retrained against them.

        Raises:
            UsageError: the wrapped backend has no features.
        """
        job, backend = self.job, self.job.backend
        if not isinstance(backend, Represents):
            raise UsageError("method.name: needs features of answers, which this backend has not")
        prompts = [group.prompt for group in groups]
        answers = sampled(job, policy, prompts, adversary.answers, f"game-{name}")
        none, costs = np.zeros(adversary.answers), np.zeros((adversary.answers, len(multipliers)))
        fresh = [
            replace(group, responses=tuple(row), reward=none, costs=costs, columns={})
            for group, row in zip(groups, answers, strict=True)
        ]
        inputs = {
            "identity": job.identity, "groups": digest_of_groups(groups), "fresh": digest_of_groups(fresh),
            "multipliers": multipliers, "adversary": asdict(adversary),
        }  # fmt: skip

        def make() -> Columns:
            job.tell(f"retraining a reward head against {policy.name}")
            rewards = retrained_rewards(backend, groups, fresh, multipliers, adversary)
            return {"reward": np.concatenate(rewards).tolist()}

        columns = table_of(job, "game", inputs, make, target=f"rounds/{name}/game")
        rewards = np.array(columns["reward"]).reshape(len(fresh), -1)
        return [replace(group, reward=row) for group, row in zip(fresh, rewards, strict=True)]

    def sample(self, policy: Policy, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Response]]:
        """Return responses of the backend."""
        return self.job.backend.sample(policy, prompts, n, seed)

    def log_probs(self, policy: Policy, groups: Sequence[Group]) -> list[FloatArray]:
        """Return log-probabilities of the backend."""
        return self.job.backend.log_probs(policy, groups)

    def mutual_information(self, policy: Policy, groups: Sequence[Group]) -> list[FloatArray]:
        """Return what the prompts add to the responses' log-probabilities.

        Raises:
            UsageError: the backend cannot tell.
        """
        if not isinstance(self.job.backend, Informs):
            raise UsageError("method.name: needs log-probabilities of bare responses, which this backend has not")
        return self.job.backend.mutual_information(policy, groups)

    def _policy(self, name: str, told: str, make: Callable[[Path], Policy], inputs: Mapping[str, Any]) -> Policy:
        """Return the policy that ``make`` makes in the folder of round ``name``, or made there before."""
        job = self.job
        described = {key: _described(job, value) for key, value in inputs.items()}

        def action(folder: Path) -> None:
            if told:
                job.tell(told)
            report = make(folder).report
            write_json(folder / RECORD, {"key": canonical_digest(described), "report": report})

        folder = folder_made(job.journal, "fit", described, action, target=f"rounds/{name}/fit")
        return Policy(name, folder / "policy", FitReport(**read_json(folder / RECORD)["report"]))


def _described(job: Job, value: Any) -> Any:
    """Return what stands for an argument in a phase's key."""
    if isinstance(value, Policy):
        return key_of(job, value)
    if isinstance(value, Objective):
        return describe(value)
    if isinstance(value, list | tuple) and value and isinstance(value[0], Policy | Group):
        return digest_of_groups(value) if isinstance(value[0], Group) else [key_of(job, policy) for policy in value]
    return value


def describe(objective: Objective) -> dict[str, Any]:
    """Return what of an objective determines the fit."""
    return {
        "name": objective.name,
        "multipliers": objective.multipliers,
        "beta": objective.beta,
        "temperature": objective.temperature,
        "labels": getattr(objective.labels, "__name__", repr(objective.labels)),
        "columns": objective.columns,
    }


def digest_of_groups(groups: Sequence[Group]) -> str:
    """Return the hash of scored groups and their columns."""
    # with how each answer ends: two cuts may read alike, and are not trained on alike
    said = [[[answer.text, answer.tokens, answer.finished] for answer in group.responses] for group in groups]
    rows = zip(groups, said, strict=True)
    return canonical_digest([[g.prompt.id, answers, g.reward, g.costs, g.weight, g.columns] for g, answers in rows])


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
    pairs, game = (replace(one, differences=one.differences / size) for one in (pairs, game))
    joined = adversarial_comparisons(pairs, game, coefficient=coefficient)
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
