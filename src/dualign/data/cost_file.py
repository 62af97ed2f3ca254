"""A file of costs of any origin -> the costs of each policy, for ``dualign certify``.

Rows of ``prompt`` and ``cost`` (or ``cost_<name>`` columns), optional ``policy`` and ``cluster``; JSONL, CSV, TSV or
Parquet by the file's ending. A cost that is missing or not a finite number is refused, never filled in.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dualign.certify import Costs
from dualign.errors import DataError, MissingError
from dualign.records import prompt_id

Row = Mapping[str, Any]
PREFIX = "cost_"
ONLY_POLICY = "policy"
"""Name of the policy of a file without a ``policy`` column."""


@dataclass(frozen=True, slots=True)
class CostFile:
    """What a costs file holds."""

    costs: Mapping[str, Mapping[str, Costs]]
    """Policy (in the order of first appearance) -> cost name -> its rows."""
    names: tuple[str, ...]
    """Cost names: ``cost`` for the plain column, ``<name>`` for ``cost_<name>``."""
    policy_column: bool


def read_costs(path: Path) -> CostFile:
    """Return the costs in ``path``; prompts are told apart by their normalised text.

    Raises:
        MissingError: the file is absent or cannot be read.
        DataError: empty file, unknown ending, or a faulty row; the message names file, line and column.
    """
    rows = list(_rows(path))
    if not rows:
        raise DataError(f"{path}: no rows; expected one response a row with prompt and cost")
    header = _columns(rows)
    names = _cost_columns(path, header)
    for line, row in rows:
        if "prompt" not in row:
            raise DataError(f"{path}, line {line}: no column 'prompt'; the columns are {', '.join(row)}")
    prompts = [_text(path, line, row, "prompt") for line, row in rows]
    policies = [_text(path, line, row, "policy") if "policy" in header else ONLY_POLICY for line, row in rows]
    clusters = [_text(path, line, row, "cluster") for line, row in rows] if "cluster" in header else None
    ids = [prompt_id(prompt) for prompt in prompts]
    if clusters is not None:
        _check_clusters(path, rows, ids, clusters)
    values = {name: np.array([_cost(path, line, row, column) for line, row in rows]) for name, column in names.items()}
    costs: dict[str, dict[str, Costs]] = {}
    for policy in dict.fromkeys(policies):
        chosen = [index for index, other in enumerate(policies) if other == policy]
        costs[policy] = {
            name: Costs(
                [ids[index] for index in chosen],
                column[chosen],
                None if clusters is None else [clusters[index] for index in chosen],
            )
            for name, column in values.items()
        }
    return CostFile(costs, tuple(names), "policy" in header)


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield 1-based line (or row) numbers and rows."""
    readers = {
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".json": _jsonl,
        ".csv": _csv,
        ".tsv": _csv,
        ".parquet": _parquet,
    }
    reader = readers.get(path.suffix.lower())
    if not path.exists():
        raise MissingError(f"{path}: no such file; expected a file of costs")
    if not path.is_file():
        raise MissingError(f"{path}: is not a file; expected a file of costs")
    if reader is None:
        raise DataError(f"{path}: unknown ending {path.suffix!r}; expected one of {', '.join(readers)}")
    try:
        yield from reader(path)
    except OSError as error:
        raise MissingError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {line}: not JSON ({error}); expected one object a line") from error
            if not isinstance(row, dict):
                kind = type(row).__name__
                raise DataError(f"{path}, line {line}: expected an object with prompt and cost; given a {kind}")
            yield line, row


def _csv(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            header = reader.fieldnames or []
            if len(set(header)) != len(header):
                raise DataError(f"{path}, line 1: a column name stands twice; the columns are {', '.join(header)}")
            for row in reader:
                if None in row:
                    raise DataError(f"{path}, line {reader.line_num}: more fields than the header has ({len(header)})")
                yield reader.line_num, row
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from error
    yield from enumerate(table.to_pylist(), 1)


def _columns(rows: Sequence[tuple[int, Row]]) -> list[str]:
    """Return every column of any row, in the order of appearance."""
    return list(dict.fromkeys(key for _, row in rows for key in row))


def _cost_columns(path: Path, header: Sequence[str]) -> dict[str, str]:
    names = {column.removeprefix(PREFIX): column for column in header if column == "cost" or column.startswith(PREFIX)}
    if not names or "" in names:
        raise DataError(f"{path}: no cost column; expected 'cost' or 'cost_<name>', found {', '.join(header)}")
    if len(names) < sum(column == "cost" or column.startswith(PREFIX) for column in header):
        raise DataError(f"{path}: the columns 'cost' and 'cost_cost' have the same name; rename one")
    return names


def _text(path: Path, line: int, row: Row, column: str) -> str:
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        _refuse(path, line, column, value, "a text that is not empty")
    return str(value)


def _cost(path: Path, line: int, row: Row, column: str) -> float:
    """Return a finite number; CSV has only texts, so a text that is a plain number counts there."""
    value = row.get(column)
    textual = path.suffix.lower() in {".csv", ".tsv"}
    if isinstance(value, bool) or not isinstance(value, str if textual else int | float):
        _refuse(path, line, column, value, "a finite number")
    try:
        number = math.nan if isinstance(value, str) and "_" in value else float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        _refuse(path, line, column, value, "a finite number")
    return number


def _refuse(path: Path, line: int, column: str, value: object, expected: str) -> NoReturn:
    given = "nothing" if value is None or value == "" else repr(value)[:60]
    raise DataError(f"{path}, line {line}: column {column!r} holds {given}; expected {expected}")


def _check_clusters(path: Path, rows: Sequence[tuple[int, Row]], ids: Sequence[str], clusters: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for (line, _), prompt, cluster in zip(rows, ids, clusters, strict=True):
        if seen.setdefault(prompt, cluster) != cluster:
            raise DataError(
                f"{path}, line {line}: its prompt lies in cluster {cluster!r} here and in {seen[prompt]!r} before; "
                "a prompt belongs to exactly one cluster"
            )
