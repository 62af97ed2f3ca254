"""``dualign init``: a commented config that runs."""

from importlib.resources import files
from typing import Annotated

import typer

from dualign.errors import UsageError

KINDS = ("demo", "hf", "pairs", "seven-b")


def init(
    kind: Annotated[str, typer.Option(help=f"One of {', '.join(KINDS)}.")] = "demo",
) -> None:
    """Print a commented config that runs.

    Example: dualign init --kind hf > job.yaml
    """
    if kind not in KINDS:
        raise UsageError(f"--kind: unknown {kind!r}; known: {', '.join(KINDS)}")
    typer.echo(files("dualign.cli").joinpath("configs", f"{kind}.yaml").read_text(encoding="utf-8"), nl=False)
