"""``dualign plan``: scored reference samples, limits and beta -> what to expect, before any training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import dualign
from dualign.cli.shared import AsJson, Columns, figure, mapping, named_numbers, notes, printed, shown, typed
from dualign.errors import NONE_CERTIFIED, UsageError, inert


def plan(
    scores: Annotated[Path, typer.Argument(help="JSONL, CSV or Parquet: prompt, reward, cost (or cost_NAME), weight.")],
    beta: Annotated[float, typer.Option("--beta", help="Strength of the KL term, raw reward units, above 0.")],
    limit: Annotated[
        list[str] | None, typer.Option("--limit", help="[NAME=]D: largest mean cost allowed; repeat for several.")
    ] = None,
    columns: Columns = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the multipliers alone.")] = False,
) -> None:
    """Say before any training whether the limits can be reached, and with which multipliers.

    Example: dualign plan scores.jsonl --limit 0 --beta 0.3

    Exit code 0 reachable, 11 not.
    """
    if not limit:
        raise UsageError("--limit: missing; give the largest mean cost, as --limit 0 or --limit harm=0")
    with typed():
        found = dualign.plan(scores, named_numbers("--limit", limit) or {}, beta=beta, columns=mapping(columns))
    notes(found.notes, quiet=quiet)
    if printed(found.figures, as_json=as_json):
        pass
    elif quiet:
        print(inert(" ".join(f"{name}={figure(value)}" for name, value in found.multipliers.items())))
    else:
        _show(found.figures)
    if not found.feasible:
        raise typer.Exit(NONE_CERTIFIED)


def _show(figures: Mapping[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

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
        table.add_row(shown(name), *map(figure, [*values, figures["multiplier_error"][name]]))
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
        ways.add_row(*map(figure, cells))
    console.print(ways)
