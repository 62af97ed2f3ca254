"""``dualign scorer check``: whether a scorer is any good as a reward or a cost, by what people said of answers."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from dualign.cli.columns import Columns, mapping
from dualign.cli.named_scorer import Direction, named_scorer
from dualign.cli.progress import Progress
from dualign.errors import UsageError, inert_lines


def check(
    scorer: Annotated[
        str,
        typer.Argument(
            metavar="SCORER",
            help="A kind, kind=K,key=value, a YAML or JSON file, the folder of a fitted scorer, or module:attribute.",
        ),
    ],
    data: Annotated[Path, typer.Argument(help="Preference file: labelled pairs, or answers with safety flags.")],
    direction: Annotated[
        Direction | None,
        typer.Option(help="cost (up is bad) or reward (up is good); default: the kind's, else cost."),
    ] = None,
    second: Annotated[str | None, typer.Option(help="Another scorer of the same quantity, to compare with.")] = None,
    beta: Annotated[float, typer.Option(help="KL coefficient, for scores in units of their SD within a prompt.")] = 0.3,
    temperature: Annotated[float, typer.Option(help="Of the labels.")] = 1.0,
    format: Annotated[str | None, typer.Option("--format", help="Name of the format, if it is not recognised.")] = None,
    columns: Columns = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Measure a scorer against labels: order, sign, scale, batch parity, agreement; the last line is the verdict.

    Example: dualign scorer check kind=length,unit=words pairs.jsonl --direction cost

    Exit code 0 whatever the verdict is.
    """
    for name, value in (("--beta", beta), ("--temperature", temperature)):
        if not 0 < value < math.inf:
            raise UsageError(f"{name} {value:g}: a number above 0 is needed")
    from dualign.data.formats.table import describe, read_preferences
    from dualign.hashing import plain
    from dualign.scorers.checking.check import check_scorer
    from dualign.scorers.checking.text import check_text

    tell = Progress(quiet=quiet).tell
    named = named_scorer(scorer, direction=direction, default="cost")
    other = None if second is None else named_scorer(second, direction=named.direction, default=named.direction)
    file = read_preferences(data, format=format, columns=mapping(columns))
    tell(describe(file))
    built = named.build()
    compared = None if other is None else other.build()
    tell(f"scoring with {built.id}" + ("" if compared is None else f" and {compared.id}"))
    report = plain(check_scorer(built, file, second=compared, beta=beta, temperature=temperature))
    print(json.dumps(report, allow_nan=False) if json_output else inert_lines(check_text(report)))
