"""Where the command line comes in: a config and a run directory, locked, journalled, run to its report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dualign.config import Config
from dualign.errors import ConfigError, UsageError
from dualign.job.checks import check, check_rule, constraints_of
from dualign.job.job import Tell
from dualign.job.pairs import load_pairs
from dualign.job.prompts import check_mixes, check_slices, demonstration_notes, load_splits, units
from dualign.report.build import build_report
from dualign.runs.journal import open_run
from dualign.runs.lock import run_lock
from dualign.worlds.assistant_text import WORLDS


def check_only(config: Config, folder: Path) -> dict[str, Any]:
    """Return what a dry run finds: prompts by split, what the chat template does. Nothing is written.

    Raises:
        DualignError: any mistake that can be seen without the model's weights.
    """
    check(config)
    if config.policy.world in WORLDS:
        return {"world": config.policy.world}
    if config.policy.world is not None:
        from dualign.worlds.file import load_world

        world = load_world(folder / config.policy.world)
        check_rule(config.method.dual, len(world.names))
        return {"world": config.policy.world, "prompts": len(world.prompts), "limits": dict(world.limits)}
    from dualign.models.loading import check_named

    check_named(str(config.policy.model))
    said = _adapter_notes(config)
    given = load_pairs(config, folder, fetch=False)
    splits, notes = load_splits(config, folder, given=[prompt for prompt, _, _ in given.pairs])
    notes = [*said, *given.notes, *notes, *demonstration_notes(config, folder)]
    check_slices(constraints_of(config)[0], splits)
    check_mixes(config, splits)
    from dualign.job.reader import check_limits
    from dualign.job.wording import check_template

    dropped = check_limits(config, folder, splits)
    notes += [] if dropped is None else [dropped]
    with _config_mistakes():
        notes += check_template(config, [prompt for prompts in splits.values() for prompt in prompts], given.pairs)
    return {
        "splits": {name: len(prompts) for name, prompts in splits.items()},
        "units": {name: units(prompts) for name, prompts in splits.items()},
        "notes": notes,
    }


def _adapter_notes(config: Config) -> list[str]:
    """Return what is to be said of the config's adapter, checked as far as that can be without the model."""
    if config.policy.adapter is None:
        return []
    from dualign.models.adapter_merge import base_note, check_adapter

    folder = Path(config.policy.adapter)
    return base_note(folder, check_adapter(folder), str(config.policy.model))


@contextmanager
def _config_mistakes() -> Iterator[None]:
    """Turn what parts say about their arguments into a mistake of the config, which is where they come from."""
    try:
        yield
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
    check_only(config, folder)
    with _config_mistakes(), run_lock(run):
        journal = open_run(run, config.model_dump(mode="json"), notify=lambda event: _warn(event, tell))
        if config.policy.world in WORLDS:
            from dualign.job.demo import run_demo

            result, code = run_demo(config, run, journal, tell, arms=arms)
        elif config.policy.world is not None:
            from dualign.job.finite import run_finite

            result, code = run_finite(config, folder, run, journal, tell)
        else:
            from dualign.job.assembly import assemble
            from dualign.job.run import run_job

            result, code = run_job(assemble(config, folder, run, journal, tell))
        # the file's path is relative, so that a run can be moved and two runs compared
        return {**result, "report": str(build_report(run))}, code


def _warn(event: Any, tell: Tell) -> None:
    """Show warnings of the journal."""
    if event.get("event") == "warning":
        tell(f"warning: {event['text']}")


def run_warm_start(config: Config, folder: Path, run: Path, tell: Tell) -> dict[str, Any]:
    """Return where the warm-started model stands, after the supervised stages of ``config`` alone.

    Raises:
        ConfigError: the config has no supervised stage.
    """
    from dualign.job.assembly import warm_started

    if not config.policy.warm_start:
        raise ConfigError("policy.warm_start: no stage is given; name at least one")
    check_only(config, folder)
    with _config_mistakes(), run_lock(run):
        journal = open_run(run, config.model_dump(mode="json"), notify=lambda event: _warn(event, tell))
        warm_started(config, folder, journal, tell)
        model = run / "policy" / str(len(config.policy.warm_start) - 1) / "model"
        return {"run": config.run.name, "model": str(model), "seconds": journal.seconds()}
