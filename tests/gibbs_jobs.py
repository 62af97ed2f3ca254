"""A job without a language model: six replies a prompt, and a backend whose fit is the exact minimiser.

Soft labels of ``reward - multipliers . costs`` are minimised by ``reference * exp(score / beta)``; this backend takes
that for trained, so that the stages of a job can be checked against numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dualign.config import Config
from dualign.job.checks import constraints_of
from dualign.job.phases import Job
from dualign.protocols import FitReport, Objective, Policy
from dualign.records import FloatArray, Group, Prompt, Response
from dualign.runs.journal import open_run
from dualign.runs.store import read_json, write_json

REPLIES = 6
SHARES = np.array([0.30, 0.25, 0.20, 0.12, 0.08, 0.05])
"""Reference probabilities of the six replies, at every prompt."""


def scores(prompt: Prompt) -> tuple[FloatArray, FloatArray]:
    """Return the prompt's rewards ``[reply]`` and costs ``[reply, 2]``: the better a reply, the costlier."""
    number = int(prompt.text.split()[-1])
    rng = np.random.default_rng([11, number])
    harm = rng.uniform(0, 1, REPLIES)
    return harm + 0.5 * rng.uniform(0, 1, REPLIES), np.stack([harm, rng.uniform(0, 1, REPLIES)], axis=1)


@dataclass(frozen=True)
class Score:
    """Column 0: reward, 1 and 2: costs."""

    column: int
    shift: float = 0.0

    @property
    def id(self) -> str:
        return f"column {self.column}"

    @property
    def revision(self) -> str:
        return f"shift {self.shift}"

    @property
    def direction(self) -> str:
        return "reward" if self.column == 0 else "cost"

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        values = []
        for prompt, text in zip(prompts, responses, strict=True):
            reward, costs = scores(prompt)
            values.append(np.concatenate([reward[:, None], costs], axis=1)[int(text[-1]), self.column] + self.shift)
        return np.array(values)


@dataclass(frozen=True)
class Gibbs:
    """The backend: a policy is a file of raw multipliers and beta."""

    folder: Path
    units: FloatArray
    """Reward SD and cost SDs, known to the test alone: what the job's own scale must agree with."""

    def probabilities(self, policy: Policy, prompt: Prompt) -> FloatArray:
        if policy.state is None:
            return SHARES
        made = read_json(Path(policy.state) / "gibbs.json")
        reward, costs = scores(prompt)
        multipliers = np.zeros(2)
        multipliers[: len(made["multipliers"])] = made["multipliers"]
        weights = SHARES * np.exp((reward - costs @ multipliers) / made["beta"])
        return np.asarray(weights / weights.sum())

    def fit(
        self,
        groups: Sequence[Group],  # noqa: ARG002
        *,
        objective: Objective,
        reference: Policy,  # noqa: ARG002
        start: Policy | None,  # noqa: ARG002
        seed: int,  # noqa: ARG002
        name: str,
    ) -> Policy:
        reward_sd, cost_sds = self.units[0], self.units[1 : 1 + len(objective.multipliers)]
        raw = objective.multipliers * reward_sd / cost_sds
        folder = self.folder / name
        write_json(folder / "gibbs.json", {"multipliers": raw, "beta": objective.beta * reward_sd})
        return Policy(name, folder, FitReport(steps=1, loss=0.0, slope=1.0, seconds=0.0))

    def sample(self, policy: Policy, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Response]]:
        drawn = []
        for prompt in prompts:
            p = self.probabilities(policy, prompt)
            rng = np.random.default_rng([seed % 2**32, int(prompt.id[:8], 16)])
            chosen = rng.choice(REPLIES, n, p=p)
            drawn.append([Response(f"reply {k}", (int(k), 9), float(np.log(p[k]))) for k in chosen])
        return drawn

    def log_probs(self, policy: Policy, groups: Sequence[Group]) -> list[FloatArray]:
        return [
            np.log([self.probabilities(policy, group.prompt)[r.tokens[0]] for r in group.responses]) for group in groups
        ]


def prompts(split: str, count: int) -> list[Prompt]:
    """Return prompts of two labels, half each."""
    start = {"train": 0, "tune": 10_000, "calibration": 20_000, "report": 30_000}[split]
    return [Prompt(f"prompt {start + k}", {"label": "risky" if k % 2 else "benign"}) for k in range(count)]


SIZES = {"train": 200, "tune": 200, "calibration": 600, "report": 40}


def gibbs_config(constraints: Sequence[dict[str, Any]], **sections: dict[str, Any]) -> Config:
    """Return the config of a job of such constraints."""
    value: dict[str, Any] = {
        "policy": {"model": "none"},
        "data": {"sources": [{"path": "none.jsonl"}]},
        "reward": {"scorer": {"kind": "length"}},
        "constraints": [{"scorer": {"kind": "length"}, **constraint} for constraint in constraints],
        "training": {"beta": 0.3},
        "sampling": {"responses_per_prompt": 8},
        "evaluation": {"responses_per_prompt": 4},
        "certificate": {"responses_per_prompt": 4},
    }
    return Config.model_validate({**value, **sections})


def gibbs_job(run: Path, config: Config, *, shift: float = 0.0) -> Job:
    """Return the job; ``shift`` moves the cost of the first constraint, as another scorer would."""
    constraints, functionals = constraints_of(config)
    everything = [scores(prompt) for prompt in prompts("train", 200)]
    spread = [float(np.sqrt(np.mean([_variance(reward) for reward, _ in everything])))]
    spread += [float(np.sqrt(np.mean([_variance(costs[:, i]) for _, costs in everything]))) for i in range(2)]
    costs = [Score(1, shift), Score(2)][: len(constraints)]
    return Job(
        config=config,
        journal=open_run(run, config.model_dump(mode="json")),
        backend_at=lambda folder: Gibbs(folder, np.array(spread)),
        reference=Policy("reference"),
        identity="six replies",
        splits={name: prompts(name, count) for name, count in SIZES.items()},
        constraints=constraints,
        functionals=functionals,
        reward=Score(0),  # type: ignore[arg-type]
        costs=tuple(costs),  # type: ignore[arg-type]
        tell=lambda text: None,
    )


def _variance(values: FloatArray) -> float:
    return float(SHARES @ (values - SHARES @ values) ** 2)


def with_splits(job: Job, **changed: list[Prompt]) -> Job:
    """Return the job with other prompts in some splits."""
    return replace(job, splits={**job.splits, **changed})
