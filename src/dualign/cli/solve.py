"""``dualign solve``: any method on a finite world, against the exact optimum."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import dualign
from dualign.cli.shared import AsJson, named_numbers, number, printed, shown, typed
from dualign.errors import NONE_CERTIFIED, UsageError

if TYPE_CHECKING:
    from rich.text import Text


def solve(
    world_path: Annotated[Path, typer.Argument(metavar="WORLD", help="A finite world (JSON).")],
    method: Annotated[str, typer.Option(help="Method; `dualign methods` lists them.")] = "c-dpo",
    dual: Annotated[
        str | None,
        typer.Option(help="Dual rule: bracket (one limit), projected_newton (several), newton, gradient, fixed."),
    ] = None,
    labels: Annotated[str, typer.Option(help="Label mode: soft, bernoulli, hard.")] = "soft",
    loss: Annotated[
        str, typer.Option(help="Pairwise loss: dpo, ipo, conservative-dpo, kldpo, wdpo, b-dpo, dr-dpo.")
    ] = "dpo",
    temperature: Annotated[float, typer.Option(help="Label temperature.")] = 1.0,
    start: Annotated[str, typer.Option(help="First multiplier after 0, raw, or one-shot.")] = "1",
    step: Annotated[float | None, typer.Option(help="Step of the gradient rule; default 1/L.")] = None,
    multiplier: Annotated[
        list[str] | None, typer.Option(help="[NAME=]X, raw: use these multipliers, search none.")
    ] = None,
    limit: Annotated[list[str] | None, typer.Option(help="[NAME=]D: replaces the world's limit.")] = None,
    beta: Annotated[float | None, typer.Option(help="Replaces the world's beta.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="KEY=VALUE: a setting of the method's own.")] = None,
    interpolate: Annotated[
        bool, typer.Option("--interpolate", help="Add the mix of the two policies on either side of the limit.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of drawn labels.")] = 0,
    policy: Annotated[Path | None, typer.Option(help="Write the policy's probabilities there (JSON).")] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the verdict alone.")] = False,
) -> None:
    """Solve a finite world by a method and compare it with the exact optimum; exit 11 where no policy meets the limits.

    Example: dualign solve world.json --limit harm=0.1 --dual newton
    """
    with typed():
        found = dualign.solve(
            world_path,
            method=method,
            limits=named_numbers("--limit", limit),
            beta=beta,
            multipliers=named_numbers("--multiplier", multiplier),
            dual=dual,
            start=start if start == "one-shot" else number("--start (a number of 0 or more, or one-shot)", start),
            step=step,
            loss=loss,
            labels=labels,
            temperature=temperature,
            interpolate=interpolate,
            seed=seed,
            options=_options(option or []),
        )
    if policy is not None:
        from dualign.runs.store import write_json

        write_json(policy, found.policy)
    if not printed(found.figures, as_json=as_json, indent=2):
        _show(found.figures, quiet=quiet)
    if not found.feasible:
        raise typer.Exit(NONE_CERTIFIED)


def _options(given: list[str]) -> dict[str, float | str]:
    """Return the method's own settings of ``KEY=VALUE`` texts; what reads as a number is one."""
    found: dict[str, float | str] = {}
    for text in given:
        name, mark, value = text.partition("=")
        if not mark or not name:
            raise UsageError(f"--option {text}: write KEY=VALUE")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = value
    return found


def _show(figures: Any, *, quiet: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table()
    limits = figures["limits"]
    for title in ("", *(f"multiplier {name}" for name in limits), "reward", *limits, "KL", "objective"):
        table.add_column(shown(title))
    for index, row in enumerate(figures["iterates"]):
        table.add_row(f"round {index}", *_cells(row), style="dim")
    table.add_section()
    table.add_row("returned", *_cells(figures), style="bold")
    table.add_row("optimum" if figures["feasible"] else "least violating", *_cells(figures["optimum"]))
    table.add_row("limit", *[""] * (len(limits) + 1), *[f"{d:.4g}" for d in limits.values()], "", "")
    if not quiet:
        console.print(table)
    console.print(_verdict(figures))
    for warning in figures["warnings"]:
        console.print(Text.assemble(("warning:", "yellow"), " ", shown(warning)))


def _cells(row: Any) -> list[str]:
    numbers = [*row["multipliers"].values(), row["reward"], *row["costs"].values(), row["kl"], row["objective"]]
    return ["-" if number is None else f"{number:.4f}" for number in numbers]


def _verdict(figures: Any) -> "Text":
    from rich.text import Text

    rounds = f"{figures['method']}, beta {figures['beta']:g}: {figures['rounds']} policies fitted"
    if not figures["feasible"]:
        lowest = ", ".join(f"{name} {value:.4g}" for name, value in figures["attainable"].items())
        said = shown(f": no policy meets the limits (lowest cost of each alone: {lowest}). {rounds}.")
        return Text.assemble(("infeasible", "red"), said)
    met = ("limits met", "green") if figures["limits_met"] else ("limits not met", "red")
    distance = f"{figures['gap']:.2g} below the optimum's Lagrangian, KL {figures['distance']:.2g} from it"
    return Text.assemble(met, shown(f"; {distance}. {rounds}."))
