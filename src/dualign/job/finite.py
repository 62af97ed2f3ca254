"""A finite world as a run: the same journal, and enumeration in the place of samples and bounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dualign.errors import CERTIFIED, NONE_CERTIFIED, NOT_CERTIFIED
from dualign.job.phases import OpenRun
from dualign.job.policies import describe, digest_of_groups
from dualign.protocols import FitReport, Policy
from dualign.records import FloatArray, Group
from dualign.runs.store import read_json, write_bytes, write_json
from dualign.worlds.file import World, load_world
from dualign.worlds.solving import SolveSettings, policy_table, solve
from dualign.worlds.tabular import TabularBackend

TABLE = "log_probs.npy"


class JournalledTables(TabularBackend):
    """The tabular backend with every fit a phase of the journal; other steps take no time."""

    def __init__(self, world: World, run: OpenRun) -> None:
        """Return the backend of ``world``."""
        super().__init__(world)
        self._run = run

    def fit(self, groups: Sequence[Group], *, name: str, **given: Any) -> Policy:
        """Return the fitted table, from the journal where it is done already."""

        def action(folder: Path) -> Policy:
            self._run.tell(f"fitting {name} at normalised multipliers {given['objective'].multipliers}")
            policy = super(JournalledTables, self).fit(groups, name=name, **given)
            _write_array(folder / TABLE, policy.state)
            write_json(folder / "policy.json", policy.report)
            return policy

        def load(folder: Path) -> Policy:
            report = read_json(folder / "policy.json")
            table = np.load(folder / TABLE, allow_pickle=False)
            return Policy(name, table, FitReport(**{**report, "history": tuple(report["history"])}))

        inputs = {
            "groups": digest_of_groups(groups),
            "objective": describe(given["objective"]),
            "reference": given["reference"].state,
            "start": None if given["start"] is None else given["start"].state,
            "seed": given["seed"],
        }
        return self._run.journal.phase("fit", inputs, action, load, target=f"rounds/{name}")


def _write_array(path: Path, values: FloatArray) -> None:
    """Write a plain array file, whole or not at all."""
    import io

    sink = io.BytesIO()
    np.save(sink, values, allow_pickle=False)
    write_bytes(path, sink.getvalue())


def run_finite(run: OpenRun, folder: Path) -> tuple[dict[str, Any], int]:
    """Return the ``train`` object and the exit code for a world file; its limits and beta are the world's."""
    config, method = run.config, run.config.method
    world = load_world(folder / str(config.policy.world))
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
    solution = solve(world, settings, backend=JournalledTables(world, run))
    figures = dict(solution.figures)
    write_json(run.folder / "policy.json", policy_table(world, solution), run=run.folder)
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
    write_json(run.folder / "result.json", result, run=run.folder)
    code = CERTIFIED if figures["limits_met"] else NOT_CERTIFIED
    return {**result, "seconds": run.journal.seconds()}, code if solution.feasible else NONE_CERTIFIED
