"""``dualign methods``: the table of methods, what each needs and where it comes from."""

from typing import Annotated, Any

import typer

from dualign.cli.shared import AsJson, printed, shown
from dualign.errors import UsageError
from dualign.hashing import plain
from dualign.maths.conversion import SYSTEMS, WITHOUT, Parameters, from_target, systems, to_target
from dualign.methods.options import unknown
from dualign.methods.table import METHODS

FIELDS = ("name", "source", "needs", "constraint", "reconstruction", "weight", "note")
OPTION = ("name", "default", "expected", "meaning")


def methods(
    equivalent_to: Annotated[
        str | None,
        typer.Option(metavar="SYSTEM:KEY=VALUE,...", help="Print the same target policy in every system's terms."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the table of methods, or one policy in the terms of all systems.

    Example: dualign methods --equivalent-to safe-rlhf:lambda=0.5,kl=0.1
    """
    if equivalent_to is not None:
        _print_equivalents(equivalent_to, as_json=as_json)
        return
    rows = [
        {key: getattr(method, key) for key in FIELDS}
        | {"options": [{key: getattr(option, key) for key in OPTION} for option in method.options]}
        for method in METHODS.values()
    ]
    if printed({"methods": rows}, as_json=as_json, indent=2):
        return
    from rich.console import Console
    from rich.table import Column, Table

    # Six facts in four columns, so that a row keeps to a few lines at 100 columns.
    held = Column("constraint\nmultiplier from", max_width=15)
    table = Table("method", Column("needs", max_width=20), held, "source\nnote", title="Methods", show_lines=True)
    for method in METHODS.values():
        name = method.name + ("\n(reconstruction)" if method.reconstruction else "")
        kind = f"{method.constraint}\n{method.weight}"
        table.add_row(name, ", ".join(method.needs), kind, f"{method.source}\n{method.note}")
    Console().print(table)


def _print_equivalents(text: str, *, as_json: bool) -> None:
    """Print the policy that ``text`` means in the terms of every system."""
    found = equivalents(text)
    if printed(found, as_json=as_json):
        return
    from rich.console import Console
    from rich.table import Table

    meant = f"multiplier {found['multiplier']:.6g} and beta {found['beta']:.6g} in C-DPO's terms"
    table = Table("system", "parameters", "note", title=shown(f"{text}: {meant}"))
    for row in SYSTEMS:
        parameters = found["systems"][row.names[0]]
        values = (f"{key} {'none' if value is None else f'{value:.6g}'}" for key, value in parameters.items())
        table.add_row(", ".join(row.names), ", ".join(values), row.note)
    Console().print(table)


def equivalents(text: str) -> dict[str, Any]:
    """Return the policy that ``SYSTEM:KEY=VALUE,...`` means, in C-DPO's terms and in those of every system.

    Raises:
        UsageError: an unknown system or parameter, or values that mean no policy.
    """
    name, _, given = text.partition(":")
    known = systems()
    if name in WITHOUT:
        raise UsageError(f"--equivalent-to: {name} has no counterpart: {WITHOUT[name]}")
    if name not in known:
        raise UsageError(f"--equivalent-to: {unknown('system', name, known)}")
    try:
        target = to_target(known[name], _parameters(given))
    except ValueError as error:
        raise UsageError(f"--equivalent-to {error}") from None
    return {
        "multiplier": target.multiplier,
        "beta": target.beta,
        "systems": {name: plain(from_target(row, target)) for name, row in known.items()},
        "notes": {name: row.note for name, row in known.items()},
    }


def _parameters(text: str) -> Parameters:
    """Return the numbers of ``KEY=VALUE,KEY=VALUE``.

    Raises:
        ValueError: a part that is none.
    """
    found = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key in found:
            raise ValueError(f"{key} is given twice; keep one")
        try:
            found[key] = float("none" if "_" in value else value)
        except ValueError:
            raise ValueError(f"expected KEY=NUMBER, got {part!r}") from None
    return found
