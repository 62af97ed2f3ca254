"""What the commands share: options of names and numbers, one JSON object or a text, progress."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dualign.errors import ArgumentError, UsageError, inert

if TYPE_CHECKING:
    from rich.text import Text


Columns = Annotated[
    list[str] | None,
    typer.Option("--columns", help="NAME=COLUMN,...: what your columns are called; a.b.0 reaches into objects."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


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


def named(option: str, given: Sequence[str] | None) -> dict[str, str] | None:
    """Return NAME -> value of ``[NAME=]VALUE`` texts, the empty name for a bare one; none where none is given.

    Raises:
        UsageError: a name twice.
    """
    found: dict[str, str] = {}
    for text in given or ():
        name, _, value = text.rpartition("=")
        if name in found:
            raise UsageError(f"{option}: given twice for {name or 'the one cost'!r}; give it once")
        found[name] = value
    return found or None


def named_numbers(option: str, given: Sequence[str] | None) -> dict[str, float] | None:
    """Return NAME -> number of ``[NAME=]NUMBER`` texts, as ``named`` does.

    Raises:
        UsageError: a name twice, or a value that is no finite number.
    """
    texts = named(option, given)
    return None if texts is None else {name: number(f"{option} {name}".strip(), text) for name, text in texts.items()}


def number(option: str, text: str) -> float:
    """Return the finite number that a text is in plain decimals.

    Raises:
        UsageError: it is none.
    """
    from dualign.data.cells import LARGEST, decimal

    found = decimal(text)
    if not abs(found) <= LARGEST:
        raise UsageError(f"{option}: expected a finite number; given {text!r}")
    return found


@contextmanager
def typed() -> Iterator[None]:
    """Call the arguments of a Python call by the names of the options that they were typed as."""
    try:
        yield
    except ArgumentError as error:
        raise UsageError(f"--{error}") from None


def printed(figures: Mapping[str, Any], *, as_json: bool, indent: int | None = None) -> bool:
    """Return whether the figures were printed as the one JSON object of ``--json``."""
    if as_json:
        print(json.dumps(figures, indent=indent, allow_nan=False), flush=True)
    return as_json


def figure(value: float | None) -> str:
    """Return a number to four digits."""
    return "-" if value is None else f"{value:.4g}"


def shown(text: object, style: str = "") -> "Text":
    """Return a text of others for rich: without markup or emoji codes in it, and nothing that a terminal acts upon."""
    from rich.text import Text

    return Text(inert(text), style=style)


def notes(lines: Sequence[str], *, quiet: bool = False, word: str = "note") -> None:
    """Print lines on stderr that a user should know of."""
    for line in () if quiet else lines:
        print(f"{word}: {inert(line)}", file=sys.stderr)


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
