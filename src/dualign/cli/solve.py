"""``dualign solve``: any method on a finite world, against the exact optimum."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dualign.errors import NONE_CERTIFIED, UsageError

if TYPE_CHECKING:
    from rich.text import Text

    from dualign.worlds.file import World


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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the verdict alone.")] = False,
) -> None:
    """Solve a finite world by a method and compare it with the exact optimum; exit 11 where no policy meets the limits.

    Example: dualign solve world.json --limit harm=0.1 --dual newton
    """
    from dualign.worlds.file import load_world
    from dualign.worlds.solving import SolveSettings, policy_table
    from dualign.worlds.solving import solve as run

    world = _changed(load_world(world_path), limit or [], beta)
    settings = SolveSettings(
        method=method,
        dual=dual,
        start=_start(start),
        multipliers=_multipliers(multiplier, world),
        step=step,
        loss=loss,
        labels=labels,
        temperature=temperature,
        interpolate=interpolate,
        seed=seed,
        options=_options(option or []),
    )
    solution = run(world, settings)
    if policy is not None:
        from dualign.runs.store import write_json

        write_json(policy, policy_table(world, solution))
    if as_json:
        print(json.dumps(solution.figures, indent=2, allow_nan=False))
    else:
        _show(world, solution.figures, quiet=quiet)
    if not solution.feasible:
        raise typer.Exit(code=NONE_CERTIFIED)


def _changed(world: World, limits: Sequence[str], beta: float | None) -> World:
    """Return ``world`` with the limits and the beta of the command line."""
    if beta is not None:
        if not (beta > 0 and math.isfinite(beta)):
            raise UsageError(f"--beta: must be a number above 0, got {beta:g}")
        world = replace(world, beta=beta)
    return replace(world, limits={**world.limits, **_named("--limit", limits, world.names)})


def _multipliers(given: Sequence[str] | None, world: World) -> Any:
    import numpy as np

    if not given:
        return None
    chosen = _named("--multiplier", given, world.names)
    for name in world.names:
        if name not in chosen:
            raise UsageError(f"--multiplier: {name!r} has none; give {name}=X too")
        if chosen[name] < 0:
            raise UsageError(f"--multiplier {name}: must be 0 or more, got {chosen[name]:g}")
    return np.array([chosen[name] for name in world.names])


def _named(option: str, given: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Return constraint -> number of ``[NAME=]X`` values.

    Raises:
        UsageError: an unknown name, a bare number where several constraints could be meant, no finite number.
    """
    from dualign.methods.options import unknown

    found: dict[str, float] = {}
    for text in given:
        name, mark, value = text.rpartition("=")
        if not mark:
            if len(names) > 1:
                raise UsageError(f"{option} {text}: which of {', '.join(names)}? write NAME={text}")
            name = names[0]
        if name not in names:
            raise UsageError(unknown(option, name, names))
        if name in found:
            raise UsageError(f"{option}: {name!r} is given twice; keep one")
        found[name] = _number(f"{option} {name}", value)
    return found


def _options(given: Sequence[str]) -> dict[str, float | str]:
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


def _number(where: str, text: str) -> float:
    try:
        value = math.nan if "_" in text else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{where}: must be a number, got {text!r}")
    return value


def _start(text: str) -> float | Literal["one-shot"]:
    return "one-shot" if text == "one-shot" else _number("--start (a number of 0 or more, or one-shot)", text)


def _show(world: World, figures: Any, *, quiet: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dualign.cli.shared import shown

    console = Console(highlight=False)
    table = Table()
    multipliers = [f"multiplier {name}" for name in world.names]
    for title in ("", *multipliers, "reward", *world.names, "KL", "objective"):
        table.add_column(shown(title))
    for index, row in enumerate(figures["iterates"]):
        table.add_row(f"round {index}", *_cells(row), style="dim")
    table.add_section()
    table.add_row("returned", *_cells(figures), style="bold")
    table.add_row("optimum" if figures["feasible"] else "least violating", *_cells(figures["optimum"]))
    table.add_row("limit", *[""] * (len(world.names) + 1), *[f"{d:.4g}" for d in world.limits.values()], "", "")
    if not quiet:
        console.print(table)
    console.print(_verdict(figures))
    for warning in figures["warnings"]:
        console.print(Text.assemble(("warning:", "yellow"), " ", shown(warning)))


def _cells(row: Any) -> list[str]:
    numbers = [*row["multipliers"].values(), row["reward"], *row["costs"].values(), row["kl"], row["objective"]]
    return ["-" if number is None else f"{number:.4f}" for number in numbers]


def _verdict(figures: Any) -> Text:
    from rich.text import Text

    from dualign.cli.shared import shown

    rounds = f"{figures['method']}, beta {figures['beta']:g}: {figures['rounds']} policies fitted"
    if not figures["feasible"]:
        lowest = ", ".join(f"{name} {value:.4g}" for name, value in figures["attainable"].items())
        said = shown(f": no policy meets the limits (lowest cost of each alone: {lowest}). {rounds}.")
        return Text.assemble(("infeasible", "red"), said)
    met = ("limits met", "green") if figures["limits_met"] else ("limits not met", "red")
    distance = f"{figures['gap']:.2g} below the optimum's Lagrangian, KL {figures['distance']:.2g} from it"
    return Text.assemble(met, shown(f"; {distance}. {rounds}."))
