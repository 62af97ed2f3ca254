"""Where the command line comes in: a config and a run directory, locked, journalled, run to its report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.config import Config
from dualign.errors import ConfigError, UsageError
from dualign.job.checks import check, check_rule
from dualign.job.phases import OpenRun, Tell
from dualign.report.build import build_report
from dualign.runs.journal import open_run
from dualign.runs.lock import run_lock
from dualign.worlds.assistant_text import WORLDS

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
    from dualign.worlds.file import load_world

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


def _finished(result: dict[str, Any], code: int, run: Path) -> tuple[dict[str, Any], int]:
    """Return the object and the exit code, with the report built."""
    # the file's path is relative, so that a run can be moved and two runs compared
    return {**result, "report": str(build_report(run))}, code


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

            return _finished(*run_demo(opened, arms=arms), run)
        from dualign.job.finite import run_finite

        return _finished(*run_finite(opened, folder), run)


def run_inputs(config: Config, inputs: Inputs, run: Path, tell: Tell) -> tuple[dict[str, Any], int]:
    """Return what ``run_config`` does, for a config that was checked and inputs that were read, or made in memory."""
    from dualign.job.assembly import assemble
    from dualign.job.results import run_job

    with _opened(config, run, tell) as opened:
        return _finished(*run_job(assemble(opened, inputs)), run)


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
