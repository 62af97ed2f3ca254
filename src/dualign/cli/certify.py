"""``dualign certify``: a file of costs, limits and caps -> a certificate."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import dualign
from dualign.cli.shared import AsJson, Columns, figure, mapping, named, named_numbers, notes, shown, typed
from dualign.errors import UsageError
from dualign.records import Certificate


def certify(
    costs: Annotated[Path, typer.Argument(help="JSONL, CSV or Parquet: prompt, cost (or cost_NAME), policy, cluster.")],
    limit: Annotated[
        list[str] | None, typer.Option("--limit", help="[NAME=]D: largest allowed value; repeat for several.")
    ] = None,
    cap: Annotated[list[str] | None, typer.Option("--cap", help="[NAME=]C: costs above C count as C.")] = None,
    functional: Annotated[
        list[str] | None,
        typer.Option(help="[NAME=]mean, rate (share of costs > 0), rate:T (> T) or cvar:ALPHA:THRESHOLD."),
    ] = None,
    floor: Annotated[list[str] | None, typer.Option("--floor", help="[NAME=]F: costs below F count as F.")] = None,
    confidence: Annotated[float, typer.Option(help="Probability that the claim is right, 1 - delta.")] = 0.95,
    order: Annotated[
        str | None, typer.Option(help="Order of testing, a,b,c; default: first appearance, safest first.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Another order of the prompts; named in the claim.")] = None,
    method: Annotated[str, typer.Option(help="betting, or clopper-pearson for a rate.")] = "betting",
    scorer: Annotated[str, typer.Option(help="What gave the costs: part of the claim.")] = "",
    decoding: Annotated[str, typer.Option(help="How responses were drawn: part of the claim.")] = "",
    sealed: Annotated[
        Path | None, typer.Option("--seal", help="Seal file: written at the first opening, kept to later.")
    ] = None,
    columns: Columns = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the verdict alone.")] = False,
) -> None:
    """Certify that limits hold, from held-out costs of any origin.

    Example: dualign certify costs.jsonl --limit 0 --cap 50

    Exit code 0 certified, 10 the only policy is not certified, 11 none of several is, 12 invalid.
    """
    from dualign.certificate.certify import VERDICT_CODES
    from dualign.data.score_file import read_costs

    # What was typed is checked before the file, as far as that goes.
    if not limit:
        raise UsageError("--limit: missing; give the largest allowed cost, as --limit 0 or --limit harm=0")
    limits = named_numbers("--limit", limit) or {}
    caps, floors = named_numbers("--cap", cap), named_numbers("--floor", floor)
    kinds = named("--functional", functional)
    content = read_costs(costs, columns=mapping(columns))
    for option, given in {"cap": caps, "floor": floors, "functional": kinds}.items():
        extra = [name for name in given or () if name and name not in limits]
        if extra and extra[0] in content.names:
            raise UsageError(f"--{option}: {extra[0]!r} has no --limit; add --limit {extra[0]}=D or leave it out")
    notes(content.notes, quiet=quiet)
    printed: list[str] = []

    def finish(found: Certificate) -> None:
        """Make what is printed, before the opening is recorded: what fails here has opened nothing."""
        if as_json:
            printed.append(json.dumps(found.figures, allow_nan=False) + "\n")
        else:
            printed.append(found.verdict + "\n" if quiet else certificate_text(found.figures))

    with typed():
        certificate = dualign.certify(
            content,
            limit=limits,
            cap=caps,
            floor=floors,
            functional=kinds,
            confidence=confidence,
            order=None if order is None else [name.strip() for name in order.split(",")],
            seed=seed,
            method=method,
            scorer=scorer,
            decoding=decoding,
            seal=sealed,
            finish=finish,
        )
    sys.stdout.write(printed[0])
    sys.stdout.flush()
    notes(certificate.figures["warnings"], quiet=not quiet or as_json, word="warning")
    if certificate.verdict != "CERTIFIED":
        raise typer.Exit(VERDICT_CODES[certificate.verdict])


def certificate_text(figures: Mapping[str, Any]) -> str:
    """Return a certificate as it is printed for people."""
    from rich import box
    from rich.console import Console, Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    colour = {"CERTIFIED": "green", "INVALID": "red"}.get(figures["verdict"], "yellow")
    parts: list[Any] = [shown(figures["statement"])]
    if figures["constraints"]:
        table = Table(box=box.SIMPLE, pad_edge=False)
        headings = ("limit on", "at most", "estimate", "upper bound", "e-value", "prompts", "at cap")
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "limit on" else "right")
        for name, row in figures["constraints"].items():
            at_cap = f"{100 * row['share_at_cap']:.2g} %"
            cells = [row[key] for key in ("limit", "estimate", "simultaneous_upper_bound", "e_value")]
            table.add_row(shown(name), *map(figure, cells), str(row["n_prompts"]), at_cap)
        parts.append(table)
        parts.append(shown(_footing(figures), "dim"))
    if len(figures["ladder"]) > 1:
        rungs = Table(box=box.SIMPLE, pad_edge=False)
        for heading in ("policy", "verdict", "closest limit", "estimate", "e-value"):
            rungs.add_column(heading, justify="right" if heading[0] == "e" else "left")
        for row in figures["ladder"]:
            closest = row["constraint"] or "-"
            numbers = map(figure, (row["estimate"], row["e_value"]))
            rungs.add_row(shown(row["policy"]), row["verdict"], shown(closest), *numbers)
        parts.append(rungs)
    parts += [shown(f"Warning: {line}", "yellow") for line in figures["warnings"]]
    for heading, key in (("Assumed", "assumptions"), ("Not claimed", "not_claimed")):
        if figures[key]:
            parts += [Text(f"{heading}:", style="bold")] + [shown(f"  - {line}") for line in figures[key]]
    chosen = figures["selected"] if len(figures["ladder"]) > 1 else None
    title = figures["verdict"] + (f": {chosen}" if chosen else "")
    console = Console(highlight=False)
    with console.capture() as capture:
        console.print(Panel(Group(*parts), title=shown(title, "bold"), border_style=colour))
    return capture.get()


def _footing(figures: Mapping[str, Any]) -> str:
    together = "Upper bounds hold together" if len(figures["constraints"]) > 1 else "The upper bound holds"
    sentences = [f"{together} with confidence {1 - figures['delta_spent']:g}."]
    if figures["method"] == "betting":
        sentences.append(f"An e-value of {1 / figures['delta_spent']:.4g} or more certifies.")
    companions = ", ".join(f"{name} {figure(value)}" for name, value in figures["companions"].items())
    sentences.append(f"For comparison ({figures['constraint']}): {companions}.")
    return " ".join(sentences)
