"""``dualign train``: the main job; a finished or interrupted run goes on with the same command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dualign.cli.progress import Progress
from dualign.errors import ConfigError, InfeasibleError, inert

if TYPE_CHECKING:
    from dualign.config import Config


def train(
    config: Annotated[Path, typer.Argument(help="YAML config; `dualign init` prints one.")],
    out: Annotated[Path | None, typer.Option(help="Run directory; default runs/<run.name>.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, such as training.beta=0.3.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything that is cheap, then stop.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress on stderr.")] = False,
) -> None:
    """Train a policy that is as helpful as its limits allow, and certify it.

    Example: dualign train examples/smollm2-harm.yaml --set data.prompts=FOLDER
    """
    from dualign.config import blamed, load_config
    from dualign.pipeline.checks import check

    loaded = load_config(config, override)
    try:
        check(loaded)
    except ConfigError as error:
        raise blamed(error, override or []) from None
    run = out if out is not None else Path("runs") / loaded.run.name
    progress = Progress(quiet=quiet)
    from dualign.pipeline.entry import check_only, run_config

    if dry_run:
        finish(check_only(loaded, config.parent), 0, json_output=json_output)
    try:
        result, code = run_config(loaded, config.parent, run, progress.tell)
    except InfeasibleError as error:
        if json_output:
            show(_infeasible(loaded, error), json_output=True)
        raise
    finish(result, code, json_output=json_output, run=run)


def _infeasible(config: "Config", error: InfeasibleError) -> dict[str, Any]:
    """Return the ``train`` object of a job that ended before any training: no policy can meet its limits."""
    return {
        "run": config.run.name,
        "verdict": "INFEASIBLE",
        "reason": str(error),
        "limits": {constraint.name: constraint.limit for constraint in config.constraints},
        "selected": None,
        "iterates": [],
        "seconds": {},
        "report": None,
    }


def finish(result: dict[str, Any], code: int, *, json_output: bool, run: Path | None = None) -> None:
    """Print the result, as JSON or as text, and exit with ``code``."""
    show(result, json_output=json_output, run=run)
    raise typer.Exit(code)


def show(result: dict[str, Any], *, json_output: bool, run: Path | None = None) -> None:
    """Print the result: as JSON, else what a person wants to know of ``run``, else line by line."""
    import json

    from dualign.hashing import plain

    if json_output:
        typer.echo(json.dumps(plain(result)))
    elif run is not None:
        from dualign.report.text import summary_text

        typer.echo(summary_text(run))
    else:
        typer.echo("\n".join(inert(f"{key}: {value}", most=100_000) for key, value in result.items()))
