"""``dualign train``: the main job; a finished or interrupted run goes on with the same command."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dualign.cli.progress import Progress


def train(
    config: Annotated[Path, typer.Argument(help="YAML config; `dualign init` prints one.")],
    out: Annotated[Path | None, typer.Option(help="Run directory; default runs/<run.name>.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, such as training.beta=0.3.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything that is cheap, then stop.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress on stderr.")] = False,
) -> None:
    """Train a policy that is as helpful as its limits allow, and certify it.

    Example: dualign train examples/smollm2-harm.yaml --set data.prompts=../shared/data
    """
    from dualign.config import load_config

    loaded = load_config(config, override)
    run = out if out is not None else Path("runs") / loaded.run.name
    progress = Progress(quiet=quiet)
    from dualign.pipeline.entry import check_only, run_config

    if dry_run:
        finish(check_only(loaded, config.parent), 0, json_output=json_output)
    result, code = run_config(loaded, config.parent, run, progress.tell)
    finish(result, code, json_output=json_output, run=run)


def finish(result: dict[str, Any], code: int, *, json_output: bool, run: Path | None = None) -> None:
    """Print the result, as JSON or as text, and exit with ``code``."""
    import json

    from dualign.runs.store import plain

    if json_output:
        typer.echo(json.dumps(plain(result), ensure_ascii=False))
    elif run is not None:
        from dualign.report.text import summary_text

        typer.echo(summary_text(run))
    else:
        typer.echo("\n".join(f"{key}: {value}" for key, value in result.items()))
    raise typer.Exit(code)
