"""``dualign sft``: the supervised warm start alone."""

from pathlib import Path
from typing import Annotated

import typer

from dualign.cli.progress import Progress
from dualign.cli.train import finish


def sft(
    config: Annotated[Path, typer.Argument(help="YAML config with policy.warm_start.")],
    out: Annotated[Path | None, typer.Option(help="Run directory; default runs/<run.name>-sft.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, such as run.seed=1.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Run the supervised stages of a job and keep the model; an interrupted run goes on with the same command.

    Example: dualign sft examples/smollm2-harm.yaml --set data.prompts=FOLDER
    """
    from dualign.config import load_config
    from dualign.pipeline.entry import run_warm_start

    loaded = load_config(config, override)
    run = out if out is not None else Path("runs") / f"{loaded.run.name}-sft"
    finish(run_warm_start(loaded, config.parent, run, Progress(quiet=quiet).tell), 0, json_output=json_output)
