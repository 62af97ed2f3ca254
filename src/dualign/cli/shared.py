"""The option ``--columns`` of every command that reads a table."""

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dualign.errors import UsageError, inert

if TYPE_CHECKING:
    from rich.text import Text


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


def shown(text: object, style: str = "") -> "Text":
    """Return a text of others for rich: without markup or emoji codes in it, and nothing that a terminal acts upon."""
    from rich.text import Text

    return Text(inert(text), style=style)


class Progress:
    """Tells what is going on; says nothing when quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        """Start the clock."""
        self._quiet = quiet
        self._started = time.monotonic()

    def tell(self, message: str) -> None:
        """Print one line: minutes, seconds, message."""
        if not self._quiet:
            minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
            print(f"[{minutes:3d}:{seconds:02d}] {inert(message)}", file=sys.stderr, flush=True)
