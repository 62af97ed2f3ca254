"""The exceptions a user can meet, and the exit code that each one ends a command with.

::

    DualignError
    ├── UsageError       2   a mistake typed on the command line
    │   └── ArgumentError    a mistake in an argument of a Python call
    ├── InfeasibleError 11   no policy meets the limits
    ├── DataError       65   a mistake inside a file: data, config, world, an altered run
    │   └── ConfigError 65
    ├── MissingError    66   an input that is missing or cannot be read
    ├── ScorerError     69   a scorer failed; it never returns a number then
    ├── NumericalError  70   NaN, divergence
    ├── StorageError    74   the disk
    └── LockedError     75   another process writes this run directory

Verdicts are not errors, yet they have codes: 0 certified, 10 not certified, 11 none of several
candidates certified (or infeasible), 12 certificate invalid; signals end with 130 and 143, state saved.
"""

import difflib
from collections.abc import Iterable
from typing import ClassVar

REPLACED = "\ufffd"
"""Stands for each character that a terminal would act upon, or could not show."""

CERTIFIED = 0
NOT_CERTIFIED = 10
NONE_CERTIFIED = 11
INVALID_CERTIFICATE = 12


def inert(text: object, *, most: int = 4000) -> str:
    """Return ``text`` as one line that a terminal shows and does not act upon, cut after ``most`` characters.

    What comes from data, configs, paths or others may hold escape sequences, line ends, marks that turn the direction
    of writing, or halves of characters. Spaces stay as they are; every other unprintable character is replaced.
    """
    said = str(text)
    line = said if len(said) <= most else f"{said[:most]}..."
    return "".join(c if c.isprintable() else " " if c.isspace() else REPLACED for c in line)


def inert_lines(text: str) -> str:
    """Return a text of several lines, each of them ``inert``."""
    return "\n".join(map(inert, text.split("\n")))


def shown(text: str, longest: int = 40) -> str:
    """Return ``text`` for a message: quoted, on one line, what does not print escaped, its beginning if it is long."""
    line = " ".join(text[: 4 * longest].split())
    return repr(line if len(line) <= longest and len(text) <= 4 * longest else line[:longest] + "…")


def nearest(given: object, known: Iterable[str], *, most: int = 12) -> str:
    """Return the hint of a message about an unknown name: the nearest of those ``known``, else the first of them."""
    names = list(known)
    said = str(given)
    close = difflib.get_close_matches(said, names, n=1, cutoff=0.5) or difflib.get_close_matches(
        said.lower(), names, n=1, cutoff=0.5
    )
    if close := close or [name for name in names if said and said in name]:
        return f"did you mean {close[0]!r}?"
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return f"known: {', '.join(names[:most]) or 'none'}{more}"


class DualignError(Exception):
    """A mistake that the user can mend; its message is one line: what, where, given, expected."""

    exit_code: ClassVar[int] = 1


class UsageError(DualignError):
    """A mistake typed on the command line."""

    exit_code = 2


class ArgumentError(UsageError, ValueError):
    """A mistake in an argument of a Python call; the message begins with the argument's name."""


class InfeasibleError(DualignError):
    """No policy meets the limits."""

    exit_code = 11


class DataError(DualignError):
    """A mistake inside a file."""

    exit_code = 65


class ConfigError(DataError):
    """A mistake inside a config file."""


class MissingError(DualignError):
    """An input is missing or cannot be read."""

    exit_code = 66


class ScorerError(DualignError):
    """A scorer failed: it could not answer, or its answer was not one finite number a row."""

    exit_code = 69


class NumericalError(DualignError):
    """A computation left the finite numbers."""

    exit_code = 70


class StorageError(DualignError):
    """The disk refused."""

    exit_code = 74


class LockedError(DualignError):
    """Another process writes this run directory."""

    exit_code = 75
