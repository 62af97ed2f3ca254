"""A job, and its phases on a policy: sample, score, log-ratios. Each is keyed by all that it depends on, and made once.

A phase keeps one table (``TABLES``): who asks again with the same inputs gets what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dualign.certificate.claim import Opening
from dualign.config import Config
from dualign.hashing import canonical_digest
from dualign.job.measurement import Scored, from_columns, read_responses, response_columns, slice_of, to_columns
from dualign.maths.functionals import Functional
from dualign.maths.policy_gradient import kl_bound
from dualign.protocols import Backend, Contrasts, Policy, Scorer, Scores
from dualign.records import Constraint, FloatArray, Prompt, Response
from dualign.runs.journal import Journal
from dualign.runs.store import read_json, read_table, write_json, write_table

Tell = Callable[[str], None]
"""Shows one line of progress."""
Columns = Mapping[str, list[Any]]
TABLES = {
    "sample": "samples.parquet",
    "score": "scores.parquet",
    "log-ratios": "log-ratios.parquet",
    "game": "rewards.parquet",
}
"""Phase -> the file in which it keeps what it made."""
RECORD = "policy.json"
"""Beside a fitted policy's folder: its key and how the fit went."""
CHOICE = "best-of.json"
"""In the place of a policy's weights: how it selects among answers of the reference."""
FAMILY = "family.json"
"""File of a cell of a comparison, written before it is trained: how many cells were fixed together (``cells``), and
which opening of the comparison they are (``opening``)."""


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run directory while a job is done in it."""

    config: Config
    journal: Journal
    """What is done already; it knows the folder."""
    tell: Tell = print

    @property
    def folder(self) -> Path:
        """Return the run directory."""
        return self.journal.run


@dataclass(frozen=True)
class Job:
    """All parts of one job."""

    config: Config
    journal: Journal
    backend_at: Callable[[Path], Backend]
    """Folder -> the backend that writes its policies there."""
    reference: Policy
    identity: str
    """Hash of what makes the reference and how policies are fitted and sampled: part of every key."""
    splits: Mapping[str, Sequence[Prompt]]
    """With given pairs, ``train`` holds their prompts."""
    constraints: tuple[Constraint, ...]
    functionals: tuple[Functional, ...]
    reward: Scorer
    costs: tuple[Scorer, ...]
    metrics: Mapping[str, Scorer] = field(default_factory=dict)
    """Further scorers, shown in the comparison on report prompts."""
    judges: Mapping[str, Scorer] = field(default_factory=dict)
    """Independent scorers of the reward (``reward``) and of constraints (their name), asked on report prompts."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What was found out while the job was put together: data/summary.json."""
    pairs: Sequence[tuple[Prompt, Response, Response]] = ()
    """Given pairs to train on; none: the reference's own samples."""
    decoding: str = ""
    """What the claim says of decoding besides temperature and lengths: the template's arguments, what scorers see."""
    tell: Tell = print

    @property
    def run(self) -> Path:
        """Return the run directory."""
        return self.journal.run

    @property
    def names(self) -> list[str]:
        """Return the constraints' names."""
        return [constraint.name for constraint in self.constraints]

    @property
    def scorers(self) -> dict[str, Scorer]:
        """Return what is trained on, by name: ``reward`` and the constraints."""
        return {"reward": self.reward, **dict(zip(self.names, self.costs, strict=True))}

    @property
    def backend(self) -> Backend:
        """Return the backend for reading policies; what it fits would go to the run's own folder."""
        return self.backend_at(self.run)

    def named(self, values: FloatArray) -> dict[str, float]:
        """Return ``[constraint]`` values by name."""
        return dict(zip(self.names, (float(value) for value in values), strict=True))


def folder_made(
    journal: Journal, phase: str, inputs: Mapping[str, Any], make: Callable[[Path], object], *, target: str
) -> Path:
    """Return the folder that a phase fills, or filled before from the same ``inputs``."""
    journal.phase(phase, inputs, make, lambda _: None, target=target)
    return journal.run / target


def table_of(job: Job, phase: str, inputs: Mapping[str, Any], make: Callable[[], Columns], *, target: str) -> Columns:
    """Return the columns that a phase makes, or made before from the same ``inputs``."""

    def action(folder: Path) -> Columns:
        columns = make()
        write_table(folder / TABLES[phase], columns)
        return columns

    return job.journal.phase(phase, inputs, action, lambda folder: read_table(folder / TABLES[phase]), target=target)


def folder_of(policy: Policy) -> str:
    """Return the folder of a policy's phases, relative to the run."""
    return policy.name if policy.state is None else f"rounds/{policy.name}"


def key_of(job: Job, policy: Policy) -> str:
    """Return what identifies a policy in the keys of phases on it."""
    if policy.state is None:
        return job.identity
    return str(read_json(Path(policy.state).parent / RECORD)["key"])


def digest_of_prompts(prompts: Sequence[Prompt]) -> str:
    """Return the hash of prompts in order, with all that was said before them."""
    said = [[[turn.role, turn.text] for turn in prompt.history] for prompt in prompts]
    turns = [[earlier] if earlier else [] for earlier in said]  # without any, the hash of older runs
    return canonical_digest([[prompt.id, prompt.text, *more] for prompt, more in zip(prompts, turns, strict=True)])


def sampled(
    job: Job,
    policy: Policy,
    prompts: Sequence[Prompt],
    n: int,
    stage: str,
    *,
    draw: Callable[[], Sequence[Sequence[Response]]] | None = None,
) -> list[list[Response]]:
    """Return ``n`` responses a prompt, drawn once; ``draw``: by what they are drawn, where not by the backend."""
    seed = job.config.run.seed
    sampling = job.config.sampling.model_dump(exclude={"responses_per_prompt", "batch_size"})
    inputs = {"policy": key_of(job, policy), "prompts": digest_of_prompts(prompts), "n": n, "sampling": sampling}

    def make() -> Columns:
        if draw is not None:
            return response_columns(prompts, draw())
        job.tell(f"sampling {n} x {len(prompts)} responses of {policy.name} ({stage})")
        # no two stages of a run share draws
        drawn = job.backend.sample(policy, prompts, n, int(canonical_digest([seed, stage])[:12], 16))
        return response_columns(prompts, drawn)

    target = f"{folder_of(policy)}/samples-{stage}"
    return read_responses(table_of(job, "sample", {**inputs, "seed": seed, "stage": stage}, make, target=target), n)


def scored(
    job: Job, policy: Policy, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]], stage: str
) -> Scored:
    """Return the policy's responses with their scores; log-ratios are not known yet (NaN; 0 for the reference).

    Raises:
        ScorerError: a scorer failed; what was sampled stays on disk.
    """
    inputs = {
        "policy": key_of(job, policy),
        # two cuts of an answer may read alike and end differently, and what is scored is kept with its tokens
        "responses": canonical_digest([[[one.text, one.tokens, one.finished] for one in row] for row in responses]),
        "prompts": digest_of_prompts(prompts),
        # slices are cut by columns, and some scorers read them: a prompt with another label is scored anew
        "columns": [dict(prompt.columns) for prompt in prompts],
        "scorers": {name: [scorer.id, scorer.revision] for name, scorer in job.scorers.items()},
        "where": [dict(constraint.where) for constraint in job.constraints],
    }

    def make() -> Columns:
        reward, costs = raw_scores(job, prompts, responses)
        unknown = np.full(reward.shape, 0.0 if policy.state is None else np.nan)
        return to_columns(Scored(tuple(prompts), tuple(map(tuple, responses)), reward, costs, unknown), job.names)

    columns = table_of(job, "score", inputs, make, target=f"{folder_of(policy)}/scores-{stage}")
    return from_columns(columns, prompts, job.names)


def raw_scores(
    job: Job, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]
) -> tuple[FloatArray, FloatArray]:
    """Return rewards ``[prompt, response]`` and costs ``[prompt, response, constraint]``, 0 outside a slice.

    Raises:
        ScorerError: a scorer failed.
    """
    costs = np.zeros((len(prompts), len(responses[0]), len(job.constraints)))
    for i, (scorer, constraint) in enumerate(zip(job.costs, job.constraints, strict=True)):
        rows = slice_of(prompts, constraint.where)
        if len(rows):
            costs[rows, :, i] = score_rows(scorer, [prompts[k] for k in rows], [responses[k] for k in rows])
    return score_rows(job.reward, prompts, responses), costs


def reference_answers(job: Job, prompts: Sequence[Prompt], n: int, stage: str) -> Scored:
    """Return ``n`` scored responses of the reference to each prompt.

    Raises:
        ScorerError: a scorer failed; what was sampled stays on disk.
    """
    return scored(job, job.reference, prompts, sampled(job, job.reference, prompts, n, stage), stage)


def training_answers(job: Job) -> Scored:
    """Return what pairs are made of: the given pairs, a row each, else the reference's own samples.

    Raises:
        ScorerError: a scorer failed.
    """
    if not job.pairs:
        return reference_answers(job, job.splits["train"], job.config.sampling.responses_per_prompt, "train")
    prompts = [prompt for prompt, _, _ in job.pairs]
    return scored(job, job.reference, prompts, [pair[1:] for pair in job.pairs], "train")


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

    def make() -> Columns:
        choice, backend, groups = read_choice(policy), job.backend, made.groups()
        if choice is not None:  # of a policy that selects: the gain of selecting
            found = np.full(made.reward.shape, choice.gain)
        elif isinstance(backend, Contrasts):
            found = np.array(backend.log_ratios(policy, job.reference, groups))
        else:
            found = np.array(backend.log_probs(policy, groups)) - np.array(backend.log_probs(job.reference, groups))
        return {"log_ratio": found.ravel().tolist()}

    columns = table_of(job, "log-ratios", inputs, make, target=f"{folder_of(policy)}/log-ratios-{stage}")
    return replace(made, log_ratio=np.array(columns["log_ratio"]).reshape(made.log_ratio.shape))


def score_rows(scorer: Scorer, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> FloatArray:
    """Return scores of shape ``[prompt, response]``."""
    repeated = [prompt for prompt, row in zip(prompts, responses, strict=True) for _ in row]
    texts = [response.text for row in responses for response in row]
    return np.asarray(scorer(repeated, texts), dtype=np.float64).reshape(len(prompts), -1)


def looks(job: Job, number: int = 1) -> Opening:
    """Return what the ``number``-th opening of this run directory may spend."""
    family = read_json(job.run / FAMILY, run=job.run) if (job.run / FAMILY).is_file() else {}
    planned = job.config.certificate.planned_openings
    return Opening(number + int(family.get("opening", 1)) - 1, planned=planned, cells=family.get("cells"))


@dataclass(frozen=True, slots=True)
class Choice:
    """How an answer is chosen."""

    n: int
    """Answers of the reference for each one that is given."""
    multipliers: FloatArray
    """Shape ``[constraint]``, normalised."""

    @property
    def gain(self) -> float:
        """Return ``log n - (n - 1) / n``, in nats: what choosing adds to the reference's log-probability.

        It is the mean of the log-ratio where no two answers score alike, and never less than it (Beirami et al. 2024,
        arXiv 2401.01879).
        """
        return kl_bound(self.n)


def write_choice(folder: Path, n: int, multipliers: FloatArray) -> Path:
    """Return ``folder``, in which the rule stands in the place of weights."""
    write_json(folder / CHOICE, {"n": n, "multipliers": multipliers.tolist()})
    return folder


def read_choice(policy: Policy) -> Choice | None:
    """Return the rule of a policy that selects, none for one that has weights."""
    if policy.state is None or not (Path(policy.state) / CHOICE).is_file():
        return None
    record = read_json(Path(policy.state) / CHOICE)
    return Choice(int(record["n"]), np.array(record["multipliers"], dtype=np.float64))


def select(choice: Choice, candidates: Sequence[Sequence[Response]], scores: Scores) -> list[list[Response]]:
    """Return for each prompt the first best of every ``n`` answers in turn, by reward - multipliers . costs.

    The log-probability of a chosen answer is the reference's plus the choice's gain.
    """
    relabelled = scores.reward - scores.costs @ choice.multipliers
    best = relabelled.reshape(len(candidates), -1, choice.n).argmax(axis=2)
    chosen = []
    for row, picks in zip(candidates, best, strict=True):
        kept = [row[turn * choice.n + pick] for turn, pick in enumerate(picks)]
        chosen.append([replace(answer, log_prob=(answer.log_prob or 0.0) + choice.gain) for answer in kept])
    return chosen
