"""A finite world as a run: the same journal, and enumeration in the place of samples and bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dualign.config import Config
from dualign.errors import CERTIFIED, NONE_CERTIFIED, NOT_CERTIFIED
from dualign.job.job import Tell
from dualign.job.phases import describe, digest_of_groups
from dualign.protocols import Adversary, FitReport, Objective, OnPolicyObjective, Policy
from dualign.records import FloatArray, Group, Prompt, Response
from dualign.runs.journal import Journal
from dualign.runs.store import read_json, write_bytes, write_json
from dualign.worlds.file import load_world
from dualign.worlds.solving import SolveSettings, policy_table, solve
from dualign.worlds.tabular import TabularBackend

TABLE = "log_probs.npy"


@dataclass(frozen=True)
class JournalledTables:
    """The tabular backend with every fit a phase of the journal."""

    tables: TabularBackend
    journal: Journal
    tell: Tell

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
        """Return the fitted table, from the journal where it is done already."""

        def action(folder: Path) -> Policy:
            self.tell(f"fitting {name} at normalised multipliers {objective.multipliers}")
            policy = self.tables.fit(
                groups, objective=objective, reference=reference, start=start, seed=seed, name=name
            )
            _write_array(folder / TABLE, policy.state)
            write_json(folder / "policy.json", policy.report)
            return policy

        def load(folder: Path) -> Policy:
            report = read_json(folder / "policy.json")
            table = np.load(folder / TABLE, allow_pickle=False)
            return Policy(name, table, FitReport(**{**report, "history": tuple(report["history"])}))

        inputs = {
            "groups": digest_of_groups(groups),
            "objective": describe(objective),
            "reference": reference.state,
            "start": None if start is None else start.state,
            "seed": seed,
        }
        return self.journal.phase("fit", inputs, action, load, target=f"rounds/{name}")

    def sample(self, policy: Policy, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Response]]:
        """Return draws of the table."""
        return self.tables.sample(policy, prompts, n, seed)

    def log_probs(self, policy: Policy, groups: Sequence[Group]) -> list[FloatArray]:
        """Return the table's log-probabilities."""
        return self.tables.log_probs(policy, groups)

    def improve(
        self, policy: Policy, groups: Sequence[Group], *, objective: OnPolicyObjective, reference: Policy, name: str
    ) -> Policy:
        """Return the policy after one step; no phase, because a step takes no time."""
        return self.tables.improve(policy, groups, objective=objective, reference=reference, name=name)

    def best_of(
        self, groups: Sequence[Group], *, multipliers: FloatArray, n: int, reference: Policy, name: str
    ) -> Policy:
        """Return the policy that selects among draws of the reference."""
        return self.tables.best_of(groups, multipliers=multipliers, n=n, reference=reference, name=name)

    def merge(self, first: Policy, second: Policy, *, share: float, name: str) -> Policy:
        """Return the merged policy."""
        return self.tables.merge(first, second, share=share, name=name)

    def rejudge(
        self, policy: Policy, groups: Sequence[Group], *, multipliers: FloatArray, adversary: Adversary, name: str
    ) -> list[Group]:
        """Return the groups with retrained rewards."""
        return self.tables.rejudge(policy, groups, multipliers=multipliers, adversary=adversary, name=name)

    def mutual_information(self, policy: Policy, groups: Sequence[Group]) -> list[FloatArray]:
        """Return what the prompts add to the responses' log-probabilities."""
        return self.tables.mutual_information(policy, groups)


def _write_array(path: Path, values: FloatArray) -> None:
    """Write a plain array file, whole or not at all."""
    import io

    sink = io.BytesIO()
    np.save(sink, values, allow_pickle=False)
    write_bytes(path, sink.getvalue())


def run_finite(config: Config, folder: Path, run: Path, journal: Journal, tell: Tell) -> tuple[dict[str, Any], int]:
    """Return the ``train`` object and the exit code for a world file; its limits and beta are the world's."""
    world = load_world(folder / str(config.policy.world))
    method = config.method
    kept = method.name == "fixed" and method.start != "one-shot"
    settings = SolveSettings(
        method=method.name,
        dual=method.dual,
        start=method.start,
        multipliers=np.full(len(world.names), method.start) if kept else None,
        step=method.step,
        loss=method.loss,
        labels=method.labels,
        temperature=method.temperature,
        seed=config.run.seed,
        interpolate=method.interpolate,
        options=method.options,
    )
    solution = solve(world, settings, backend=JournalledTables(TabularBackend(world), journal, tell))
    figures = dict(solution.figures)
    write_json(run / "policy.json", policy_table(world, solution), run=run)
    verdict = "CERTIFIED" if figures["limits_met"] else "NOT CERTIFIED"
    selected = {key: figures[key] for key in ("multipliers", "reward", "costs", "kl", "objective")}
    result = {
        "run": config.run.name,
        "verdict": verdict,
        "limits": figures["limits"],
        "enumerated": True,
        "selected": {"name": solution.chosen, **selected},
        "iterates": [
            {"round": k, "name": name, **row}
            for k, (name, row) in enumerate(zip(solution.names, figures["iterates"], strict=True))
        ],
        "optimum": figures["optimum"],
        "gap": figures["gap"],
        "beta_raw": world.beta,
        "notes": ["A finite world: every figure is a sum over all responses, so the verdict needs no bound."],
        "report": "report.html",
    }
    write_json(run / "result.json", result, run=run)
    code = CERTIFIED if figures["limits_met"] else NOT_CERTIFIED
    return {**result, "seconds": journal.seconds()}, code if solution.feasible else NONE_CERTIFIED
