"""A file of costs of any origin -> the costs of each policy, for ``dualign certify``.

Rows of ``prompt`` and ``cost`` (or ``cost_<name>`` columns), optional ``policy`` and ``cluster``; JSONL, CSV, TSV or
Parquet by the file's ending. A cost that is missing or not a finite number is refused, never filled in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dualign.data.rows import Row, number_cell, read_rows, text_cell
from dualign.errors import DataError
from dualign.held_out import Costs
from dualign.records import prompt_id

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
    texts: Mapping[str, str] = field(default_factory=dict)
    """Prompt id -> the prompt as it was first written."""


def read_costs(path: Path) -> CostFile:
    """Return the costs in ``path``; prompts are told apart by their normalised text.

    Raises:
        MissingError: the file is absent or cannot be read.
        DataError: empty file, unknown ending, or a faulty row; the message names file, line and column.
    """
    rows = read_rows(path, what="one response a row with prompt and cost")
    header = _columns(rows)
    names = _cost_columns(path, header)
    for line, row in rows:
        if "prompt" not in row:
            raise DataError(f"{path}, line {line}: no column 'prompt'; the columns are {', '.join(row)}")
    prompts = [text_cell(path, line, row, "prompt") for line, row in rows]
    policies = [text_cell(path, line, row, "policy") if "policy" in header else ONLY_POLICY for line, row in rows]
    clusters = [text_cell(path, line, row, "cluster") for line, row in rows] if "cluster" in header else None
    ids = [prompt_id(prompt) for prompt in prompts]
    if clusters is not None:
        _check_clusters(path, rows, ids, clusters)
    values = {
        name: np.array([number_cell(path, line, row, column) for line, row in rows]) for name, column in names.items()
    }
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
    texts = dict(zip(reversed(ids), reversed(prompts), strict=True))
    return CostFile(costs, tuple(names), "policy" in header, texts)


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


def _check_clusters(path: Path, rows: Sequence[tuple[int, Row]], ids: Sequence[str], clusters: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for (line, _), prompt, cluster in zip(rows, ids, clusters, strict=True):
        if seen.setdefault(prompt, cluster) != cluster:
            raise DataError(
                f"{path}, line {line}: its prompt lies in cluster {cluster!r} here and in {seen[prompt]!r} before; "
                "a prompt belongs to exactly one cluster"
            )
