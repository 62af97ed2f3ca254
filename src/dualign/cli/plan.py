"""``dualign plan``: scored reference samples, limits and beta -> what to expect, before any training."""

import difflib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dualign.cli.shared import Columns, mapping
from dualign.errors import NONE_CERTIFIED, UsageError, inert


def plan(
    scores: Annotated[Path, typer.Argument(help="JSONL, CSV or Parquet: prompt, reward, cost (or cost_NAME), weight.")],
    beta: Annotated[float, typer.Option("--beta", help="Strength of the KL term, raw reward units, above 0.")],
    limit: Annotated[
        list[str] | None, typer.Option("--limit", help="[NAME=]D: largest mean cost allowed; repeat for several.")
    ] = None,
    columns: Columns = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the multipliers alone.")] = False,
) -> None:
    """Say before any training whether the limits can be reached, and with which multipliers.

    Example: dualign plan scores.jsonl --limit 0 --beta 0.3

    Exit code 0 reachable, 11 not.
    """
    if not (math.isfinite(beta) and beta > 0):
        raise UsageError(f"--beta: must be a number above 0; given {beta:g}")
    if not limit:
        raise UsageError("--limit: missing; give the largest mean cost, as --limit 0 or --limit harm=0")
    from dualign.data.score_file import read_scores
    from dualign.job.planning import plan_figures

    content = read_scores(scores, columns=mapping(columns))
    for note in () if quiet else content.notes:
        print(f"note: {note}", file=sys.stderr)
    figures = plan_figures(content, _limits(limit, list(content.costs)), beta)
    if as_json:
        print(json.dumps(figures, allow_nan=False))
    elif quiet:
        print(inert(" ".join(f"{name}={_figure(value)}" for name, value in figures["multipliers"].items())))
    else:
        _show(figures)
    if not figures["feasible"]:
        raise typer.Exit(NONE_CERTIFIED)


def _limits(given: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Return name -> limit; a bare limit only where ``cost`` is the one cost of the file."""
    limits: dict[str, float] = {}
    for text in given:
        name, equals, value = text.rpartition("=")
        if not equals:
            if list(names) != ["cost"]:
                known = ", ".join(names)
                raise UsageError(f"--limit {text}: the costs have names; write NAME={text}, NAME of {known}")
            name = "cost"
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
            raise UsageError(f"--limit {text}: the file has no cost {name!r}; {hint}")
        if name in limits:
            raise UsageError(f"--limit: given twice for {name!r}; give it once")
        limits[name] = _number(text, value)
    return limits


def _number(text: str, value: str) -> float:
    from dualign.data.cells import LARGEST, decimal

    number = decimal(value)
    if not abs(number) <= LARGEST:
        raise UsageError(f"--limit {text}: expected a finite number; given {value!r}")
    return number


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _show(figures: Mapping[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dualign.cli.shared import shown

    console = Console(highlight=False)
    verdict = "[green]The limits can be reached.[/]" if figures["feasible"] else "[red]The limits cannot be reached.[/]"
    console.print(f"[bold]{verdict}[/] {figures['n_prompts']} prompts, beta {figures['beta']:g}.")
    table = Table(box=box.SIMPLE, pad_edge=False)
    headings = ("cost", "limit", "reference", "predicted", "attainable", "multiplier", "its error")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "cost" else "right")
    for name, bound in figures["limits"].items():
        sources = (figures["reference"]["costs"], figures["predicted"]["costs"], figures["attainable"])
        values = [bound, *(source[name] for source in sources), figures["multipliers"][name]]
        table.add_row(shown(name), *map(_figure, [*values, figures["multiplier_error"][name]]))
    console.print(table)
    reward, kl = figures["predicted"]["reward"], figures["predicted"]["kl"]
    console.print(f"Predicted reward {reward:.4g} (reference {figures['reference']['reward']:.4g}), KL {kl:.4g} nats.")
    for warning in figures["warnings"]:
        console.print(Text.assemble(("warning:", "yellow"), " ", shown(warning)))
    ways = Table(box=box.SIMPLE, pad_edge=False, title="Frontier", title_justify="left")
    titles = [*(f"multiplier {name}" for name in figures["limits"]), "reward"]
    titles += [*(f"cost {name}" for name in figures["limits"]), "KL"]
    for title in titles:
        ways.add_column(shown(title), justify="right")
    for row in figures["frontier"]:
        cells = [*row["multipliers"].values(), row["reward"], *row["costs"].values(), row["kl"]]
        ways.add_row(*map(_figure, cells))
    console.print(ways)
