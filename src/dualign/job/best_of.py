"""Policies without weights: the best of several answers of the reference, as a rule in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dualign.maths.policy_gradient import kl_bound
from dualign.protocols import Policy, Scores
from dualign.records import FloatArray, Response
from dualign.runs.store import read_json, write_json

RECORD = "best-of.json"


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
    write_json(folder / RECORD, {"n": n, "multipliers": multipliers.tolist()})
    return folder


def read_choice(policy: Policy) -> Choice | None:
    """Return the rule of a policy that selects, none for one that has weights."""
    if policy.state is None or not (Path(policy.state) / RECORD).is_file():
        return None
    record = read_json(Path(policy.state) / RECORD)
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
