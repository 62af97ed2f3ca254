"""The option ``--columns`` of every command that reads a table."""

from collections.abc import Sequence
from typing import Annotated

import typer

from dualign.errors import UsageError

Columns = Annotated[
    list[str] | None,
    typer.Option("--columns", help="NAME=COLUMN,...: what your columns are called; a.b.0 reaches into objects."),
]


def mapping(given: Sequence[str] | None) -> dict[str, str]:
    """Return column of the file by the name it is read as.

    Raises:
        UsageError: no ``NAME=COLUMN``, or a name twice.
    """
    columns: dict[str, str] = {}
    for pair in (pair for text in given or () for pair in text.split(",")):
        name, equals, column = (part.strip() for part in pair.partition("="))
        if not (name and equals and column):
            raise UsageError(f"--columns {pair!r}: NAME=COLUMN is needed, such as chosen=good_answer")
        if name in columns:
            raise UsageError(f"--columns: {name!r} is given twice; give it once")
        columns[name] = column
    return columns
