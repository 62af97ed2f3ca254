"""``dualign compare``: many methods and seeds on one job, and the table of what each reaches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dualign.cli.progress import Progress
from dualign.errors import UsageError, inert_lines

DEFAULT_METHODS = "c-dpo,dpo,pd-dpo,sacpo,modpo,mocan,safedpo,kldpo,wdpo,b-dpo"


def compare(
    config: Annotated[Path, typer.Argument(help="YAML config of a job, as for `dualign train`.")],
    methods: Annotated[
        str,
        typer.Option(help="Names, or NAME:KEY=VALUE+KEY=VALUE with settings; the first is what others differ from."),
    ] = DEFAULT_METHODS,
    seeds: Annotated[str, typer.Option(help="Whole numbers.")] = "0",
    out: Annotated[Path | None, typer.Option(help="Folder of the cells; default runs/compare-<run.name>.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE for all cells.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress on stderr.")] = False,
) -> None:
    """Train every method under every seed, each in its own run directory, and print one table.

    Example: dualign compare examples/assistant.yaml --methods c-dpo,dpo,sacpo --seeds 0,1,2

    A finished cell is reused, an interrupted one goes on. Beside the cells stand compare.json, .csv, .md and .html.
    """
    from dualign.compare.entry import compare_config
    from dualign.report.compare_page import markdown

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise UsageError(f"--seeds {seeds}: expected whole numbers with commas between") from None
    names = [name for name in methods.split(",") if name]
    if not names or len(set(names)) < len(names) or len(set(numbers)) < len(numbers):
        raise UsageError("--methods, --seeds: at least one of each is needed, and none twice")
    report = compare_config(config, names, numbers, out, override or [], Progress(quiet=quiet).tell)
    print(
        json.dumps(report, allow_nan=False) if json_output else inert_lines(markdown(report)),
        end="\n" if json_output else "",
    )
    if report["failed"]:
        raise typer.Exit(report["exit_code"])
