"""What a Python user has in memory -> what the parts read: numbers, tables of rows, numbers by name."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dualign.data.cells import LARGEST
from dualign.data.prompts import read_prompts
from dualign.data.tables import Table, in_memory
from dualign.errors import ArgumentError, nearest
from dualign.records import FloatArray, Prompt

Named = float | Mapping[str, float]
"""A number where there is one cost, else name -> number."""
Rows = Any
"""A pandas frame, a ``datasets.Dataset``, a list of mappings, or a mapping of columns."""


def number(argument: str, value: object, *, above: float = -math.inf) -> float:
    """Return a finite number above ``above``.

    Raises:
        ArgumentError: it is none.
    """
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        found = float(value)
        if abs(found) <= LARGEST and found > above:
            return found
    wanted = "expected a finite number; given" if above == -math.inf else f"must be a number above {above:g}, got"
    raise ArgumentError(f"{argument}: {wanted} {value!r}")


def numbers(argument: str, values: ArrayLike) -> FloatArray:
    """Return one finite number a prompt, shape ``[prompt]``.

    Raises:
        ArgumentError: the values have another shape, are no numbers, or one is not finite.
    """
    detached = values.detach().cpu() if hasattr(values, "detach") else values  # a tensor of torch
    try:
        found = np.asarray(detached)
    except (ValueError, TypeError):
        found = np.empty((0, 0))
    if found.ndim != 1:
        shape = f"shape {found.shape}" if found.size else type(values).__name__
        raise ArgumentError(f"{argument}: one number a prompt is needed, in one dimension; given {shape}")
    if found.size and found.dtype.kind not in "biuf":
        wrong = next((value for value in found.tolist() if not isinstance(value, int | float)), found[0])
        raise ArgumentError(f"{argument}: expected numbers; given {wrong!r}")
    found = found.astype(np.float64)
    bad = np.flatnonzero(~(np.abs(found) <= LARGEST))
    if bad.size:
        raise ArgumentError(f"{argument}: value {bad[0]} is {found[bad[0]]:g}; expected finite numbers")
    return found


def by_name(argument: str, given: object, names: Sequence[str], *, bare: str | None) -> dict[str, Any]:
    """Return name -> value of ``{name: value}``, or of a value alone where ``bare`` says whose it is.

    Raises:
        ArgumentError: an unknown name, a name twice, or a value alone that could be of several names.
    """
    found: dict[str, Any] = {}
    for key, value in (given if isinstance(given, Mapping) else {"": given}).items():
        name = key or bare
        if name is None:
            known, said = ", ".join(names), f"{value:g}" if isinstance(value, int | float) else value
            raise ArgumentError(
                f"{argument} {said}: which of {known}? costs have names; write NAME={said}, NAME of {known}"
            )
        if name not in names:
            raise ArgumentError(f"{argument}: there is no cost {name!r}; {nearest(name, names)}")
        if name in found:
            raise ArgumentError(f"{argument}: given twice for {name!r}; give it once")
        found[name] = value
    return found


def is_table(given: object) -> bool:
    """Return whether something is a table: a frame, a data set, a mapping of columns, or a list of mappings."""
    if isinstance(given, Mapping) or hasattr(given, "columns") or hasattr(given, "column_names"):
        return True
    return isinstance(given, Sequence) and len(given) > 0 and isinstance(given[0], Mapping)


def table_in(argument: str, given: object) -> Table:
    """Return a table in memory, named as messages call it; a mapping is one of columns.

    Raises:
        ArgumentError: it is no table, or has columns of unequal length.
        DataError: it has no rows, or one is none.
    """
    if isinstance(given, Mapping):
        columns = {str(name): list(values) for name, values in given.items()}
        if len({len(values) for values in columns.values()}) > 1:
            lengths = ", ".join(f"{name} {len(values)}" for name, values in columns.items())
            raise ArgumentError(f"{argument}: columns of unequal length: {lengths}")
        given = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise ArgumentError(f"{argument}: rows are needed; given {type(given).__name__}")
    return in_memory(given, argument)


def prompts_in(argument: str, given: Any) -> list[Prompt]:
    """Return the prompts in memory: texts, messages, rows, a frame, a data set, or ``Prompt`` objects.

    Raises:
        ArgumentError, DataError: there are none, or one is no prompt.
    """
    if isinstance(given, Sequence) and given and all(isinstance(one, Prompt) for one in given):
        return list(given)
    return read_prompts(table_in(argument, given)).every


def pairs_in(argument: str, given: Any) -> list[tuple[Prompt, str, str]]:
    """Return (prompt, chosen, rejected) of preference data in memory, in any layout that a file may have.

    Raises:
        ArgumentError, DataError: they are no pairs.
    """
    if given is None:
        return []
    if isinstance(given, Sequence) and given and all(isinstance(one, tuple) for one in given):
        return [(prompt if isinstance(prompt, Prompt) else Prompt(prompt), *answers) for prompt, *answers in given]
    from dualign.data.formats.table import read_preferences

    found = []
    for row in read_preferences(table_in(argument, given)).rows:
        if len(row.answers) != 2:
            raise ArgumentError(f"{argument}: row {row.line} has {len(row.answers)} answers; two are needed")
        first, second = (row.answers[k].text for k in ((1, 0) if row.better == 1 else (0, 1)))
        found.append((row.prompt, first, second))
    return found
