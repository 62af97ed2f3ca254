"""The backend of a job with every piece of training a phase of the journal, so that nothing is trained twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dualign.backends.capabilities import Adversary, Informs, Merges, Practice, Practises, Represents
from dualign.backends.protocol import FitReport, Objective, Policy, Score
from dualign.errors import UsageError
from dualign.hashing import canonical_digest
from dualign.pipeline.best_of import write_choice
from dualign.pipeline.job import Job
from dualign.pipeline.retraining import retrained_rewards
from dualign.pipeline.stages import RECORD, key_of, sampled
from dualign.records import FloatArray, Group, Prompt, Response
from dualign.runs.store import read_json, read_table, write_json, write_table


@dataclass(frozen=True)
class JournalledBackend:
    """A backend whose fits are phases of the journal; reading goes straight through."""

    job: Job
    score: Score
    """Scores answers, in the units of the groups."""

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
        """Return the fitted policy, from the journal where it is done already."""
        job = self.job
        inputs = {
            "identity": job.identity,
            "groups": digest_of_groups(groups),
            "objective": describe(objective),
            "reference": key_of(job, reference),
            "start": None if start is None else key_of(job, start),
            "seed": seed,
        }

        def train(folder: Path) -> Policy:
            job.tell(f"fitting {name} at normalised multipliers {np.array2string(objective.multipliers, precision=3)}")
            return job.backend_at(folder).fit(
                groups, objective=objective, reference=reference, start=start, seed=seed, name="policy"
            )

        return self._phase(name, inputs, train)

    def practise(
        self, policy: Policy, groups: Sequence[Group], *, practice: Practice, score: Score, reference: Policy,
        seed: int, name: str,
    ) -> Policy:  # fmt: skip
        """Return ``policy`` after on-policy training, from the journal where it is done already.

        Raises:
            UsageError: the wrapped backend cannot.
        """
        job, aim = self.job, practice.aim(practice.multipliers)
        scorers = [[scorer.id, scorer.revision] for scorer in (job.reward, *job.costs)]
        inputs = {
            "identity": job.identity,
            "groups": digest_of_groups(groups),
            "practice": [practice.method, practice.estimator, practice.multipliers, dict(practice.settings)],
            "aim": [aim.kl, aim.scale, aim.inflation],
            "scorers": scorers,
            "reference": key_of(job, reference),
            "start": key_of(job, policy),
            "seed": seed,
        }

        def train(folder: Path) -> Policy:
            backend = self.job.backend_at(folder)
            if not isinstance(backend, Practises):
                raise UsageError("method.name: needs training on answers of the policy, which this backend has not")
            job.tell(f"training {name} on its own answers, {practice.settings['steps']:.0f} steps")
            return backend.practise(
                policy, groups, practice=practice, score=score, reference=reference, seed=seed, name="policy"
            )

        return self._phase(name, inputs, train)

    def merge(self, first: Policy, second: Policy, *, share: float, name: str) -> Policy:
        """Return ``(1 - share) first + share second`` in weights.

        Raises:
            UsageError: the wrapped backend cannot.
        """
        inputs = {"merge": [key_of(self.job, first), key_of(self.job, second)], "share": share}

        def train(folder: Path) -> Policy:
            backend = self.job.backend_at(folder)
            if not isinstance(backend, Merges):
                raise UsageError("method.name: needs to merge policies, which this backend cannot")
            return backend.merge(first, second, share=share, name="policy")

        return self._phase(name, inputs, train)

    def best_of(
        self, groups: Sequence[Group], *, multipliers: FloatArray, n: int, reference: Policy, name: str
    ) -> Policy:
        """Return the policy that draws ``n`` answers of ``reference`` and gives one with the largest relabelled score.

        ``groups`` only fix the units.
        """
        inputs = {
            "best of": n, "multipliers": multipliers, "reference": key_of(self.job, reference),
            "groups": digest_of_groups(groups),
        }  # fmt: skip

        def train(folder: Path) -> Policy:
            made = write_choice(folder / "policy", n, multipliers)
            return Policy(name, made, FitReport(0, float("nan"), float("nan"), 0.0))

        return self._phase(name, inputs, train)

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
        fresh = [
            replace(
                group,
                responses=tuple(row),
                reward=np.zeros(len(row)),
                costs=np.zeros((len(row), group.costs.shape[1])),
                columns={},
            )
            for group, row in zip(groups, answers, strict=True)
        ]
        inputs = {
            "identity": job.identity, "groups": digest_of_groups(groups), "fresh": digest_of_groups(fresh),
            "multipliers": multipliers, "adversary": asdict(adversary),
        }  # fmt: skip

        def action(folder: Path) -> None:
            job.tell(f"retraining a reward head against {policy.name}")
            rewards = retrained_rewards(backend, groups, fresh, multipliers, adversary)
            write_table(folder / "rewards.parquet", {"reward": np.concatenate(rewards).tolist()})

        target = f"rounds/{name}/game"
        job.journal.phase("game", inputs, action, lambda _: None, target=target)
        rewards = np.array(read_table(job.run / target / "rewards.parquet")["reward"]).reshape(len(fresh), -1)
        return [replace(group, reward=row) for group, row in zip(fresh, rewards, strict=True)]

    def _phase(self, name: str, inputs: Mapping[str, Any], train: Callable[[Path], Policy]) -> Policy:
        """Return the policy that ``train`` makes in the folder of round ``name``, or made there before."""
        job, key = self.job, canonical_digest(inputs)

        def action(folder: Path) -> None:
            report = train(folder).report
            write_json(folder / RECORD, {"key": key, "report": report})

        target = f"rounds/{name}/fit"
        job.journal.phase("fit", inputs, action, lambda _: None, target=target)
        report = read_json(job.run / target / RECORD)["report"]
        return Policy(name, job.run / target / "policy", FitReport(**report))

    def sample(self, policy: Policy, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Response]]:
        """Return responses of the wrapped backend."""
        return self.job.backend.sample(policy, prompts, n, seed)

    def log_probs(self, policy: Policy, groups: Sequence[Group]) -> list[FloatArray]:
        """Return log-probabilities of the wrapped backend."""
        return self.job.backend.log_probs(policy, groups)

    def mutual_information(self, policy: Policy, groups: Sequence[Group]) -> list[FloatArray]:
        """Return what the prompts add to the responses' log-probabilities.

        Raises:
            UsageError: the wrapped backend cannot tell.
        """
        if not isinstance(self.job.backend, Informs):
            raise UsageError("method.name: needs log-probabilities of bare responses, which this backend has not")
        return self.job.backend.mutual_information(policy, groups)


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


def _said(group: Group) -> list[Any]:
    """Return a group's answers with how each ends: two cuts may read alike, and are not trained on alike."""
    return [[response.text, response.tokens, response.finished] for response in group.responses]


def digest_of_groups(groups: Sequence[Group]) -> str:
    """Return the hash of scored groups and their columns."""
    rows = [[g.prompt.id, _said(g), g.reward, g.costs, g.weight, g.columns] for g in groups]
    return canonical_digest(rows)
