"""Phases on a policy: sample, score. Each is keyed by all that it depends on, and redone by nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dualign.errors import UsageError
from dualign.hashing import canonical_digest
from dualign.job.best_of import read_choice, select, write_choice
from dualign.job.job import Job
from dualign.job.measurement import Scored, from_columns, matches, to_columns
from dualign.job.retraining import retrained_rewards
from dualign.protocols import (
    Adversary,
    Contrasts,
    FitReport,
    Informs,
    Merges,
    Objective,
    OnPolicyTraining,
    Policy,
    Represents,
    Score,
    Scorer,
    TrainsOnPolicy,
)
from dualign.records import FloatArray, Group, Prompt, Response
from dualign.runs.store import read_json, read_table, write_json, write_table

SAMPLES = "samples.parquet"
SCORES = "scores.parquet"
LOG_RATIOS = "log-ratios.parquet"
RECORD = "policy.json"
"""Beside a fitted policy's folder: its key and how the fit went."""


def folder_of(policy: Policy) -> str:
    """Return the folder of a policy's phases, relative to the run."""
    return policy.name if policy.state is None else f"rounds/{policy.name}"


def digest_of_prompts(prompts: Sequence[Prompt]) -> str:
    """Return the hash of prompts in order, with all that was said before them."""
    said = [[[turn.role, turn.text] for turn in prompt.history] for prompt in prompts]
    turns = [[earlier] if earlier else [] for earlier in said]  # without any, the hash of older runs
    return canonical_digest([[prompt.id, prompt.text, *more] for prompt, more in zip(prompts, turns, strict=True)])


def sampled(job: Job, policy: Policy, prompts: Sequence[Prompt], n: int, stage: str) -> list[list[Response]]:
    """Return ``n`` responses a prompt, drawn once."""
    seed = job.config.run.seed
    sampling = job.config.sampling.model_dump(exclude={"responses_per_prompt", "batch_size"})
    inputs = {"policy": key_of(job, policy), "prompts": digest_of_prompts(prompts), "n": n, "sampling": sampling}

    def action(folder: Path) -> list[list[Response]]:
        responses = _drawn(job, policy, prompts, n, stage)
        rows = [response for row in responses for response in row]
        columns: dict[str, list[Any]] = {
            "prompt_id": [prompt.id for prompt, row in zip(prompts, responses, strict=True) for _ in row],
            "response": [response.text for response in rows],
            "tokens": [list(response.tokens) for response in rows],
            "log_prob": [response.log_prob for response in rows],
            "finished": [response.finished for response in rows],
        }
        write_table(folder / SAMPLES, columns)
        return responses

    def load(folder: Path) -> list[list[Response]]:
        columns = read_table(folder / SAMPLES)
        parts = zip(columns["response"], columns["tokens"], columns["log_prob"], columns["finished"], strict=True)
        rows = [Response(text, tuple(tokens), log_prob, finished) for text, tokens, log_prob, finished in parts]
        return [rows[k : k + n] for k in range(0, len(rows), n)]

    target = f"{folder_of(policy)}/samples-{stage}"
    return job.journal.phase("sample", {**inputs, "seed": seed, "stage": stage}, action, load, target=target)


def _drawn(job: Job, policy: Policy, prompts: Sequence[Prompt], n: int, stage: str) -> list[list[Response]]:
    """Return fresh draws of a policy; of one that selects, the best of as many of the reference's."""
    choice = read_choice(policy)
    if choice is None:
        job.tell(f"sampling {n} x {len(prompts)} responses of {policy.name} ({stage})")
        return job.backend.sample(policy, prompts, n, _stage_seed(job.config.run.seed, stage))
    from dualign.job.search import prepare

    candidates = sampled(job, job.reference, prompts, n * choice.n, f"{stage}-best-of-{choice.n}")
    job.tell(f"choosing {n} x {len(prompts)} responses of {policy.name} ({stage})")
    return select(choice, candidates, prepare(job).score(prompts, candidates))


def _stage_seed(seed: int, stage: str) -> int:
    """Return the seed of one stage: no two stages of a run share draws."""
    return int(canonical_digest([seed, stage])[:12], 16)


def scored(job: Job, policy: Policy, prompts: Sequence[Prompt], n: int, stage: str) -> Scored:
    """Return ``n`` scored responses a prompt; their log-ratios are not known yet (NaN; 0 for the reference).

    Raises:
        ScorerError: a scorer failed; what was sampled stays on disk.
    """
    return _scored(job, policy, prompts, sampled(job, policy, prompts, n, stage), stage)


def scored_pairs(job: Job) -> Scored:
    """Return the given pairs as two scored responses each; a prompt stands once for each of its pairs.

    Raises:
        ScorerError: a scorer failed.
    """
    prompts = [prompt for prompt, _, _ in job.pairs]
    responses = [[first, second] for _, first, second in job.pairs]
    return _scored(job, job.reference, prompts, responses, "train")


def _scored(job: Job, policy: Policy, prompts: Sequence[Prompt], responses: list[list[Response]], stage: str) -> Scored:
    scorers = {"reward": job.reward, **dict(zip(job.names, job.costs, strict=True))}
    inputs = {
        "policy": key_of(job, policy),
        # two cuts of an answer may read alike and end differently, and what is scored is kept with its tokens
        "responses": canonical_digest([[[one.text, one.tokens, one.finished] for one in row] for row in responses]),
        "prompts": digest_of_prompts(prompts),
        # slices are cut by columns, and some scorers read them: a prompt with another label is scored anew
        "columns": [dict(prompt.columns) for prompt in prompts],
        "scorers": {name: [scorer.id, scorer.revision] for name, scorer in scorers.items()},
        "where": [dict(constraint.where) for constraint in job.constraints],
    }

    def action(folder: Path) -> Scored:
        made = _score(job, policy, prompts, responses)
        write_table(folder / SCORES, to_columns(made, job.names))
        return made

    def load(folder: Path) -> Scored:
        return from_columns(read_table(folder / SCORES), prompts, job.names)

    return job.journal.phase("score", inputs, action, load, target=f"{folder_of(policy)}/scores-{stage}")


def _score(job: Job, policy: Policy, prompts: Sequence[Prompt], responses: list[list[Response]]) -> Scored:
    n = len(responses[0])
    costs = np.zeros((len(prompts), n, len(job.constraints)))
    for i, constraint in enumerate(job.constraints):
        rows = [k for k, prompt in enumerate(prompts) if matches(prompt, constraint.where)]
        if rows:
            texts = [responses[k] for k in rows]
            costs[rows, :, i] = score_rows(job.costs[i], [prompts[k] for k in rows], texts)
    reward = score_rows(job.reward, prompts, responses)
    unknown = np.full((len(prompts), n), 0.0 if policy.state is None else np.nan)
    return Scored(tuple(prompts), tuple(tuple(row) for row in responses), reward, costs, unknown)


def with_log_ratios(job: Job, policy: Policy, made: Scored, stage: str) -> Scored:
    """Return ``made``, the policy's answers, with log pi(y|x) - log pi_ref(y|x) of each: what KL is the mean of.

    Both are read by the backend. The log-probability that the sampler noted is that of other products in another
    order (a cache, merged weights): in bfloat16 it differs by a tenth of a nat, always to one side.
    """
    if policy.state is None:
        return made
    inputs = {
        "read by": "the backend alone",
        "policy": key_of(job, policy),
        "reference": job.identity,
        "responses": canonical_digest([[response.tokens for response in row] for row in made.responses]),
    }

    def action(folder: Path) -> FloatArray:
        ratios = _log_ratios(job, policy, made)
        write_table(folder / LOG_RATIOS, {"log_ratio": ratios.ravel().tolist()})
        return ratios

    def load(folder: Path) -> FloatArray:
        return np.array(read_table(folder / LOG_RATIOS)["log_ratio"]).reshape(made.log_ratio.shape)

    target = f"{folder_of(policy)}/log-ratios-{stage}"
    return replace(made, log_ratio=job.journal.phase("log-ratios", inputs, action, load, target=target))


def _log_ratios(job: Job, policy: Policy, made: Scored) -> FloatArray:
    """Return ``[prompt, response]`` log-ratios to the reference; of a policy that selects, the gain of selecting."""
    choice = read_choice(policy)
    if choice is not None:
        return np.full(made.reward.shape, choice.gain)
    backend, groups = job.backend, made.groups()
    if isinstance(backend, Contrasts):
        return np.array(backend.log_ratios(policy, job.reference, groups))
    return np.array(backend.log_probs(policy, groups)) - np.array(backend.log_probs(job.reference, groups))


def score_rows(scorer: Scorer, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> FloatArray:
    """Return scores of shape ``[prompt, response]``."""
    repeated = [prompt for prompt, row in zip(prompts, responses, strict=True) for _ in row]
    texts = [response.text for row in responses for response in row]
    return np.asarray(scorer(repeated, texts), dtype=np.float64).reshape(len(prompts), -1)


def key_of(job: Job, policy: Policy) -> str:
    """Return what identifies a policy in the keys of phases on it."""
    if policy.state is None:
        return job.identity
    return str(read_json(Path(policy.state).parent / RECORD)["key"])


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

    def train_on_policy(
        self, policy: Policy, groups: Sequence[Group], *, training: OnPolicyTraining, score: Score, reference: Policy,
        seed: int, name: str,
    ) -> Policy:  # fmt: skip
        """Return ``policy`` after on-policy training, from the journal where it is done already.

        Raises:
            UsageError: the wrapped backend cannot.
        """
        job, aim = self.job, training.aim(training.multipliers)
        scorers = [[scorer.id, scorer.revision] for scorer in (job.reward, *job.costs)]
        inputs = {
            "identity": job.identity,
            "groups": digest_of_groups(groups),
            "practice": [training.method, training.estimator, training.multipliers, dict(training.settings)],
            "aim": [aim.kl, aim.scale, aim.inflation],
            "scorers": scorers,
            "reference": key_of(job, reference),
            "start": key_of(job, policy),
            "seed": seed,
        }

        def train(folder: Path) -> Policy:
            backend = self.job.backend_at(folder)
            if not isinstance(backend, TrainsOnPolicy):
                raise UsageError("method.name: needs training on answers of the policy, which this backend has not")
            job.tell(f"training {name} on its own answers, {training.settings['steps']:.0f} steps")
            return backend.train_on_policy(
                policy, groups, training=training, score=score, reference=reference, seed=seed, name="policy"
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
