"""A file of costs of any origin -> the costs of each policy, for ``dualign certify``.

Rows of ``prompt`` (text or messages) and ``cost`` (or ``cost_<name>`` columns), optional ``policy`` and ``cluster``;
JSONL, JSON, CSV, TSV or Parquet by the file's ending, also gzipped. A cost that is missing or not a finite number is
refused, never filled in.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dualign.certificate.held_out import Costs
from dualign.data.conversations import mapping_hint
from dualign.data.rows import PROMPTS, WITH, Row, decimal, number_cell, prompt_cell, read_rows, spelt_alike, text_cell
from dualign.data.table_files import readable
from dualign.errors import DataError
from dualign.records import Prompt

PREFIX = "cost_"
NO_COSTS = {"doc_id", "id", "epoch", "sample", "index", "log_prob", "tokens", "reward", "__index_level_0__"}
"""Columns of numbers that are no cost, whatever else is there."""
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
    asked: Mapping[str, Prompt] = field(default_factory=dict)
    """Prompt id -> the prompt as it was first written."""
    notes: tuple[str, ...] = ()
    """What a reader of the verdict should know of the rows."""


def read_costs(path: Path, *, columns: Mapping[str, str] | None = None) -> CostFile:
    """Return the costs in ``path``; prompts are told apart by their normalised text and all turns before it.

    ``columns``: column of the file by the name that it is read as.

    Raises:
        MissingError: the file is absent or cannot be read.
        UsageError: a name of ``columns`` that nothing is read as.
        DataError: empty file, unknown ending, or a faulty row; the message names file, line and column.
    """
    readable((*PROMPTS, *WITH, "cost", f"{PREFIX}*", "policy", "cluster"), columns or {})
    return costs_of(path, read_rows(path, what="one response a row with prompt and cost", columns=columns))


def costs_of(path: Path, rows: Sequence[tuple[int, Row]]) -> CostFile:
    """Return the costs in numbered rows; ``path`` is what messages call the table.

    Raises:
        DataError: as ``read_costs``.
    """
    header = _columns(rows)
    names = cost_columns(path, rows)
    prompts = [prompt_cell(path, line, row) for line, row in rows]
    policies = [text_cell(path, line, row, "policy") if "policy" in header else ONLY_POLICY for line, row in rows]
    clusters = [text_cell(path, line, row, "cluster") for line, row in rows] if "cluster" in header else None
    ids = [prompt.id for prompt in prompts]
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
    asked = dict(zip(reversed(ids), reversed(prompts), strict=True))
    return CostFile(costs, tuple(names), "policy" in header, asked, tuple(spelt_alike(prompts)))


def _columns(rows: Sequence[tuple[int, Row]]) -> list[str]:
    """Return every column of any row, in the order of appearance."""
    return list(dict.fromkeys(key for _, row in rows for key in row))


def cost_columns(path: Path, rows: Sequence[tuple[int, Row]]) -> dict[str, str]:
    """Return the column of each cost of a table by the cost's name: ``cost`` of ``cost``, ``x`` of ``cost_x``.

    Raises:
        DataError: there is none, or two have one name.
    """
    header = _columns(rows)
    columns = [column for column in header if column == "cost" or column.startswith(PREFIX)]
    names = {column.removeprefix(PREFIX): column for column in columns}
    if not names or "" in names:
        numbers = [name for name, value in rows[0][1].items() if _is_number(value) and name not in NO_COSTS]
        scores = rows[0][1].get("scores")  # of Inspect: an object of scores by the scorer's name
        inside = [f"scores.{name}.value" for name in scores][:1] if isinstance(scores, Mapping) else []
        likely = f"cost={(numbers if len(numbers) == 1 else inside or ['COLUMN'])[0]}"
        wanted = mapping_hint(rows[0][1], () if set(PROMPTS) & set(header) else ("prompt",), more=likely)
        among = f"; numbers are in {', '.join(numbers)}" if len(numbers) > 1 else ""
        found = f"expected 'cost' or 'cost_<name>', found {', '.join(header)}"
        raise DataError(f"{path}: no cost column; {found}; {wanted}{among} (of a cost, up is bad)")
    if len(names) < len(columns):
        raise DataError(f"{path}: the columns 'cost' and 'cost_cost' have the same name; rename one")
    return names


def _is_number(value: object) -> bool:
    """Return whether a cell holds a number, as such or as a text."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain or (isinstance(value, str) and math.isfinite(decimal(value)))


def _check_clusters(path: Path, rows: Sequence[tuple[int, Row]], ids: Sequence[str], clusters: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for (line, _), prompt, cluster in zip(rows, ids, clusters, strict=True):
        if seen.setdefault(prompt, cluster) != cluster:
            raise DataError(
                f"{path}, line {line}: its prompt lies in cluster {cluster!r} here and in {seen[prompt]!r} before; "
                "a prompt belongs to exactly one cluster"
            )
