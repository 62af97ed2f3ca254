"""``dualign demo``: the whole job in the embedded world, held against the exact optimum."""

from pathlib import Path
from typing import Annotated

import typer

from dualign.cli.progress import Progress
from dualign.cli.train import finish


def demo(
    out: Annotated[Path, typer.Option(help="Run directory.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of every stage.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A smaller job: coarser figures, under a minute.")] = False,
    full: Annotated[
        bool,
        typer.Option("--full", help="Add the other arms: hard labels, half and twice the multiplier, exact scores."),
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Find the multiplier, train, meet the limit, certify it, and compare with the exact optimum: no download.

    Example: dualign demo --out runs/demo
    """
    from dualign.pipeline.demo import demo_config
    from dualign.pipeline.entry import run_config

    config = demo_config(seed, "assistant-quick" if quick else "assistant")
    result, code = run_config(config, Path(), out, Progress(quiet=quiet).tell, arms=full)
    finish(result, code, json_output=json_output, run=out)
