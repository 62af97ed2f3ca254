"""Where the command line comes in: a config and a run directory, locked, journalled, run to its report."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dualign.config import Config
from dualign.errors import CERTIFIED, NONE_CERTIFIED, NOT_CERTIFIED, ConfigError, UsageError
from dualign.job.checks import check, check_rule
from dualign.job.phases import OpenRun, Tell
from dualign.job.policies import describe, digest_of_groups
from dualign.protocols import FitReport, Policy
from dualign.records import Group
from dualign.report.build import build_report
from dualign.runs.journal import open_run
from dualign.runs.lock import run_lock
from dualign.runs.store import read_json, write_bytes, write_json
from dualign.worlds.assistant_text import WORLDS
from dualign.worlds.file import World, load_world
from dualign.worlds.solving import SolveSettings, policy_table, solve
from dualign.worlds.tabular import TabularBackend

if TYPE_CHECKING:
    from dualign.job.inputs import Inputs


def check_only(config: Config, folder: Path) -> dict[str, Any]:
    """Return what a dry run finds: prompts by split, what the chat template does. Nothing is written.

    Raises:
        DualignError: any mistake that can be seen without the model's weights.
    """
    check(config)
    if config.policy.world is None:
        from dualign.job.inputs import read_inputs

        return read_inputs(config, folder).facts()
    if config.policy.world in WORLDS:
        return {"world": config.policy.world}
    world = load_world(folder / config.policy.world)
    check_rule(config.method.dual, len(world.names))
    return {"world": config.policy.world, "prompts": len(world.prompts), "limits": dict(world.limits)}


@contextmanager
def _opened(config: Config, run: Path, tell: Tell) -> Iterator[OpenRun]:
    """Yield ``run``, locked; what parts say of their arguments is a mistake of the config.

    Raises:
        LockedError: another process writes ``run``.
        DataError: ``run`` was made by another config.
    """

    def warn(event: Any) -> None:
        if event.get("event") == "warning":
            tell(f"warning: {event['text']}")

    try:
        with run_lock(run):
            yield OpenRun(config, open_run(run, config.model_dump(mode="json"), notify=warn), tell)
    except UsageError as error:
        raise ConfigError(str(error)) from error


def run_config(
    config: Config, folder: Path, run: Path, tell: Tell, *, arms: bool = False
) -> tuple[dict[str, Any], int]:
    """Return the ``train`` object and the exit code; the report stands in the run directory.

    ``arms`` adds the other arms of the embedded world to compare with.

    Raises:
        LockedError: another process writes ``run``.
        DataError: ``run`` was made by another config.
        DualignError: as ``check_only``; nothing is written then, so that a mended config can use ``run``.
    """
    if config.policy.world is None:
        from dualign.job.inputs import read_inputs

        check(config)
        return run_inputs(config, read_inputs(config, folder), run, tell)
    check_only(config, folder)
    with _opened(config, run, tell) as opened:
        if config.policy.world in WORLDS:
            from dualign.job.demo import run_demo

            result, code = run_demo(opened, arms=arms)
        else:
            result, code = run_finite(opened, folder)
        return {**result, "report": str(build_report(run))}, code


def run_inputs(config: Config, inputs: Inputs, run: Path, tell: Tell) -> tuple[dict[str, Any], int]:
    """Return what ``run_config`` does, for a config that was checked and inputs that were read, or made in memory."""
    from dualign.job.assembly import assemble
    from dualign.job.results import run_job

    with _opened(config, run, tell) as opened:
        result, code = run_job(assemble(opened, inputs))
        return {**result, "report": str(build_report(run))}, code


def run_warm_start(config: Config, folder: Path, run: Path, tell: Tell) -> dict[str, Any]:
    """Return where the warm-started model stands, after the supervised stages of ``config`` alone.

    Raises:
        ConfigError: the config has no supervised stage.
    """
    from dualign.job.assembly import warm_started
    from dualign.job.inputs import read_inputs

    if not config.policy.warm_start:
        raise ConfigError("policy.warm_start: no stage is given; name at least one")
    check(config)
    inputs = read_inputs(config, folder)
    with _opened(config, run, tell) as opened:
        warm_started(opened, inputs)
        model = run / "policy" / str(len(config.policy.warm_start) - 1) / "model"
        return {"run": config.run.name, "model": str(model), "seconds": opened.journal.seconds()}


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
            array = io.BytesIO()
            np.save(array, policy.state, allow_pickle=False)
            write_bytes(folder / TABLE, array.getvalue())
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


def run_finite(run: OpenRun, folder: Path) -> tuple[dict[str, Any], int]:
    """Return the ``train`` object and the exit code for a world file; its limits and beta are the world's."""
    config, method = run.config, run.config.method
    world = load_world(folder / str(config.policy.world))
    kept = method.name == "fixed" and method.start != "one-shot"
    settings = SolveSettings(
        method=method.name,
        seed=config.run.seed,
        multipliers=np.full(len(world.names), method.start) if kept else None,
        **method.model_dump(include={field.name for field in fields(SolveSettings)}),
    )
    solution = solve(world, settings, backend=JournalledTables(world, run))
    figures = dict(solution.figures)
    write_json(run.folder / "policy.json", policy_table(world, solution), run=run.folder)
    verdict, code = ("CERTIFIED", CERTIFIED) if figures["limits_met"] else ("NOT CERTIFIED", NOT_CERTIFIED)
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
    return {**result, "seconds": run.journal.seconds()}, code if solution.feasible else NONE_CERTIFIED
