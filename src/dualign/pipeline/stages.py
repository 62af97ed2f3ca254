"""Phases on a policy: sample, score. Each is keyed by all that it depends on, and redone by nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dualign.backends.capabilities import Contrasts
from dualign.backends.protocol import Policy
from dualign.hashing import canonical_digest
from dualign.pipeline.best_of import read_choice, select
from dualign.pipeline.job import Job
from dualign.pipeline.measurement import Scored, from_columns, matches, to_columns
from dualign.records import FloatArray, Prompt, Response
from dualign.runs.store import read_json, read_table, write_table
from dualign.scorers.protocol import Scorer

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
    from dualign.pipeline.search import prepare  # search stands on this module

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
