"""``dualign report``: a run directory as one HTML file."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dualign.errors import inert


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory of `train` or `demo`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the path alone.")] = False,
) -> None:
    """Write RUN/report.html: one file to read, print or send, made from the run's files alone.

    Example: dualign report runs/demo
    """
    from dualign.report import build_report, summary_text

    path = build_report(run)
    if as_json:
        from dualign.report.reading import read_run
        from dualign.report.sections import verdict_word

        typer.echo(json.dumps({"run": str(run), "verdict": verdict_word(read_run(run)), "report": str(path)}))
    else:
        typer.echo(inert(path) if quiet else summary_text(run))
