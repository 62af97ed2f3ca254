"""``dualign methods``: the table of methods, what each needs and where it comes from."""

import json
from typing import Annotated

import typer

from dualign.methods.table import METHODS


def methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the table of methods.

    Example: dualign methods --json
    """
    if as_json:
        rows = [
            {
                "name": method.name,
                "source": method.source,
                "needs": list(method.needs),
                "reconstruction": method.reconstruction,
                "weight": method.weight,
                "note": method.note,
                "options": [
                    {"name": option.name, "default": option.default, "meaning": option.meaning}
                    for option in method.options
                ],
            }
            for method in METHODS.values()
        ]
        print(json.dumps({"methods": rows}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "needs", "multiplier", "source", "note", title="Methods")
    for method in METHODS.values():
        mark = " (reconstruction)" if method.reconstruction else ""
        table.add_row(method.name + mark, ", ".join(method.needs), method.weight, method.source, method.note)
    Console().print(table)
