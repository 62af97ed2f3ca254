"""Tables of a prompt and numbers a row, of any origin: costs for ``dualign certify``, scores for ``dualign plan``.

Costs: rows of ``prompt`` (text or messages) and ``cost`` (or ``cost_<name>`` columns), optional ``policy`` and
``cluster``. Scores of the reference's responses: ``prompt`` (or an id alone, as in a run's own scores), ``reward`` and
costs; optional ``response``, ``weight`` (reference probability: the rows of a prompt are then its whole support),
``prompt_weight``, ``scorer``, ``revision``. A number that is missing or not finite is refused, never filled in.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dualign.certificate.held_out import Costs
from dualign.data.cells import HALF, RowError, decimal, encodable, name_cell, number_cell
from dualign.data.prompts import spelt_alike
from dualign.data.table_files import Row
from dualign.data.tables import Source, Table, instructed, mapping_hint, read_named
from dualign.data.turns import SYSTEM, as_prompt, holds_messages, with_system, without_answer
from dualign.errors import DataError, MissingError
from dualign.records import FloatArray, Prompt
from dualign.strict import parse_yaml

PROMPTS = ("prompt", "messages", "conversations", "instruction", "prompt_id")
"""Columns that say which prompt a row is about; the first that says anything is read."""
PREFIX = "cost_"
NO_COSTS = {"doc_id", "id", "epoch", "sample", "index", "log_prob", "tokens", "reward", "__index_level_0__"}
"""Columns of numbers that are no cost, whatever else is there."""
ONLY_POLICY = "policy"
"""Name of the policy of a file without a ``policy`` column."""


def score_table(source: Source, columns: Mapping[str, str] | None, *, names: Sequence[str], what: str) -> Table:
    """Return a table of a prompt and numbers a row, whose columns have names that a file can hold.

    Args:
        source: a file, or rows in memory.
        columns: column of the file by the name that it is read as.
        names: what columns may be read as, beside the prompt's.
        what: what the table should hold, for messages.

    Raises:
        MissingError: the file is absent or cannot be read.
        UsageError: a name of ``columns`` that nothing is read as.
        DataError: an unknown ending, no rows, a line that is not a row, or a name that no file could hold.
    """
    known = (*PROMPTS, "input", "history", *SYSTEM, "cost", f"{PREFIX}*", *names)
    try:
        table = read_named(source, columns, known)
    except (DataError, MissingError) as error:
        kind = MissingError if isinstance(error, MissingError) else DataError
        raise kind(f"{error}; expected {what}") from error
    table.each(_check_names)
    return table


def _check_names(row: Row) -> None:
    for name in row.values:
        if not encodable(name):
            raise RowError("lone surrogate", f"the name {name!r} of a column holds {HALF}")


def prompt_cell(row: Row) -> Prompt:
    """Return the prompt of a row: a text, messages, a conversation without the answer at its end, or an id alone.

    As where answers are scored, an instruction goes with its input, and a column of a system turn with every prompt.

    Raises:
        RowError: the row has none of them, or one that is no prompt.
    """
    values = row.values
    there = [name for name in PROMPTS if name in values]
    column = next((name for name in there if values[name] is not None), there[0] if there else None)
    if column is None:
        raise RowError("missing column", f"no column 'prompt'; {mapping_hint(values, ('prompt',))}")
    if column == "prompt_id":
        text = name_cell(values, column)
        return Prompt(text, id=text)
    value = instructed(values) if column == "instruction" else values[column]
    try:
        if holds_messages(value):
            return with_system(as_prompt(value if column == "prompt" else without_answer(value), column), values)
        return with_system(Prompt(name_cell({**values, column: value}, column)), values)
    except RowError as error:
        named = "" if error.what.startswith("column ") else f"column {column!r}: "
        raise RowError(error.rule, f"{named}{error.what}") from None


def numbers(table: Table, column: str, *, positive: str = "") -> FloatArray:
    """Return the finite numbers of a column; ``positive``: what to do about one that is not above 0."""
    return np.array(table.each(lambda row: number_cell(row.values, column, textual=table.textual, positive=positive)))


def told_spellings(prompts: Sequence[Prompt]) -> list[str]:
    """Return a sentence with the count of prompts that differ from another one in spelling alone, if there are any."""
    if not (alike := spelt_alike(prompts)):
        return []
    said = f"{alike} prompts differ from others in letter case, white space or Unicode form alone"
    return [f"{said}: they count as the same, and {len({prompt.id for prompt in prompts})} are told apart"]


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


def read_costs(source: Source, *, columns: Mapping[str, str] | None = None) -> CostFile:
    """Return the costs of a table; prompts are told apart by their normalised text and all turns before it.

    ``columns``: column of the file by the name that it is read as.

    Raises:
        MissingError: the file is absent or cannot be read.
        UsageError: a name of ``columns`` that nothing is read as.
        DataError: empty file, unknown ending, or a faulty row; the message names file, line and column.
    """
    what = "one response a row with prompt and cost"
    table = score_table(source, columns, names=("policy", "cluster"), what=what)
    header = table.columns
    names = cost_columns(table)
    prompts = table.each(prompt_cell)
    policies = [ONLY_POLICY] * len(prompts)
    if "policy" in header:
        policies = table.each(lambda row: name_cell(row.values, "policy"))
    ids = [prompt.id for prompt in prompts]
    clusters = table.each(lambda row: name_cell(row.values, "cluster")) if "cluster" in header else None
    if clusters is not None:
        _check_clusters(table, ids, clusters)
    values = {name: numbers(table, column) for name, column in names.items()}
    costs: dict[str, dict[str, Costs]] = {}
    for policy in dict.fromkeys(policies):
        chosen = [index for index, other in enumerate(policies) if other == policy]
        asked_for = [ids[index] for index in chosen]
        inside = None if clusters is None else [clusters[index] for index in chosen]
        costs[policy] = {name: Costs(asked_for, column[chosen], inside) for name, column in values.items()}
    asked = dict(zip(reversed(ids), reversed(prompts), strict=True))
    return CostFile(costs, tuple(names), "policy" in header, asked, tuple(told_spellings(prompts)))


def cost_columns(table: Table) -> dict[str, str]:
    """Return the column of each cost of a table by the cost's name: ``cost`` of ``cost``, ``x`` of ``cost_x``.

    Raises:
        DataError: there is none, or two have one name.
    """
    header, first = table.columns, table.rows[0].values
    columns = [column for column in header if column == "cost" or column.startswith(PREFIX)]
    names = {column.removeprefix(PREFIX): column for column in columns}
    if not names or "" in names:
        numbers = [name for name, value in first.items() if _is_number(value) and name not in NO_COSTS]
        scores = first.get("scores")  # of Inspect: an object of scores by the scorer's name
        inside = [f"scores.{name}.value" for name in scores][:1] if isinstance(scores, Mapping) else []
        likely = f"cost={(numbers if len(numbers) == 1 else inside or ['COLUMN'])[0]}"
        wanted = mapping_hint(first, () if set(PROMPTS) & set(header) else ("prompt",), more=likely)
        among = f"; numbers are in {', '.join(numbers)}" if len(numbers) > 1 else ""
        found = f"expected 'cost' or 'cost_<name>', found {', '.join(header)}"
        raise DataError(f"{table.name}: no cost column; {found}; {wanted}{among} (of a cost, up is bad)")
    if len(names) < len(columns):
        raise DataError(f"{table.name}: the columns 'cost' and 'cost_cost' have the same name; rename one")
    return names


def _is_number(value: object) -> bool:
    """Return whether a cell holds a number, as such or as a text."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain or (isinstance(value, str) and math.isfinite(decimal(value)))


def _check_clusters(table: Table, ids: Sequence[str], clusters: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for row, prompt, cluster in zip(table.rows, ids, clusters, strict=True):
        if seen.setdefault(prompt, cluster) != cluster:
            lies = f"its prompt lies in cluster {cluster!r} here and in {seen[prompt]!r} before"
            raise table.refusal(row.line, f"{lies}; a prompt belongs to exactly one cluster")


INSIDE = "inside_"
"""``inside_NAME`` in a run's own scores: whether the row's prompt lies in the slice of the cost NAME."""
POSITIVE = "leave out what has no probability"


@dataclass(frozen=True, slots=True)
class Scores:
    """Scored responses, raw units; prompts with fewer responses are padded."""

    asked: tuple[Prompt, ...]
    """In the order of first appearance."""
    log_weights: FloatArray
    """Shape ``[prompt, response]``: log of the reference probability, equal shares for draws; ``-inf`` = padding."""
    reward: FloatArray
    """Shape ``[prompt, response]``."""
    costs: Mapping[str, FloatArray]
    """Cost name -> ``[prompt, response]``; ``cost`` for the plain column, ``<name>`` for ``cost_<name>``."""
    prompt_weights: FloatArray
    """Shape ``[prompt]``, sums to one."""
    draws: bool
    """Whether the responses are samples; false where the file gives their probabilities."""
    notes: tuple[str, ...] = ()
    """What a reader of the plan should know of the rows."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Cost name -> weight of the prompts that it is about, where these are not all: its mean is over those. On others
    the costs are 0, and all are divided by the share, which makes the mean over all prompts that mean."""


def scores_path(path: Path) -> Path:
    """Return the scores file that is meant: of a run directory, the scores of the reference's training answers.

    Raises:
        MissingError: a folder that is no run directory with scores.
    """
    if not path.is_dir():
        return path
    found = path / "scores" / "reference.parquet"
    if not found.is_file():
        raise MissingError(f"{path}: is a folder without scores/reference.parquet; name a scores file or a run")
    return found


def read_scores(source: Source, *, columns: Mapping[str, str] | None = None) -> Scores:
    """Return the scores of a table, or of a run directory, which has its own.

    Prompts are told apart by their normalised text and all turns before it.

    ``columns``: column of the file by the name that it is read as.

    Raises:
        MissingError: the file is absent or cannot be read.
        UsageError: a name of ``columns`` that nothing is read as.
        DataError: an empty file or a faulty row; the message names file, line and column.
    """
    what = "scored responses: prompt, reward and cost (or cost_NAME)"
    source = scores_path(Path(source)) if isinstance(source, str | Path) else source
    table = score_table(source, columns, names=("reward", "weight", "prompt_weight"), what=what)
    config = _run_config(source) if isinstance(source, Path) else {}
    header = table.columns
    names = cost_columns(table)
    if "reward" not in header:
        wanted = mapping_hint(table.rows[0].values, (), more="reward=COLUMN")
        raise DataError(f"{table.name}: no column 'reward'; the columns are {', '.join(header)}; {wanted}")
    prompts = table.each(prompt_cell)
    members: dict[str, list[int]] = {}
    for position, prompt in enumerate(prompts):
        members.setdefault(prompt.id, []).append(position)
    groups = list(members.values())
    for positions in groups:
        if len(positions) < 2:
            text, line = prompts[positions[0]].text[:60], table.rows[positions[0]].line
            raise table.refusal(line, f"prompt {text!r} has one response; two are needed")
    values = {column: numbers(table, column) for column in ("reward", *names.values())}
    weights = numbers(table, "weight", positive=POSITIVE) if "weight" in header else np.ones(len(prompts))
    prompt_weights = _prompt_weights(table, groups, given="prompt_weight" in header)
    shares = _shares(table, groups, list(names), prompt_weights, config)
    return Scores(
        asked=tuple(prompts[positions[0]] for positions in groups),
        log_weights=_log_shares(weights, groups),
        reward=_padded(values["reward"], groups),
        costs={name: _padded(values[column], groups) / shares.get(name, 1.0) for name, column in names.items()},
        prompt_weights=prompt_weights,
        draws="weight" not in header,
        notes=(*told_spellings(prompts), *_of_run(config, values["reward"], groups)),
        shares=shares,
    )


def _shares(
    table: Table, groups: Sequence[Sequence[int]], names: Sequence[str], weights: FloatArray, config: Mapping[str, Any]
) -> dict[str, float]:
    """Return the weight of the prompts in the slice of each cost that has one, as the scores of a run tell it.

    Raises:
        DataError: the run has a slice, and its rows do not say what lies in it; or nothing does.
    """
    shares = {}
    for name in names:
        column = INSIDE + name
        if column not in table.rows[0].values:
            continue
        inside = np.array([bool(table.rows[positions[0]].values.get(column)) for positions in groups])
        shares[name] = float(weights[inside].sum())
        if not shares[name] > 0:
            nothing = f"no prompt lies in the slice of the cost {name!r} ({column} is false everywhere)"
            raise DataError(f"{table.name}: {nothing}")
    limits = config.get("constraints")
    sliced = [row.get("name") for row in limits or () if isinstance(row, Mapping) and row.get("where")]
    untold = [name for name in sliced if name in names and name not in shares]
    if untold:
        raise DataError(
            f"{table.name}: the run's cost {untold[0]!r} is about a slice of the prompts (where), and the rows do not "
            f"say which lie in it; its RUN/scores/reference.parquet does, by the column {INSIDE}{untold[0]}"
        )
    return shares


def _run_config(path: Path) -> Mapping[str, Any]:
    """Return the config of the run that a file lies in; empty where it lies in none."""
    for folder in path.absolute().parents:
        if (folder / "state.json").is_file() and (folder / "config.yaml").is_file():
            config = parse_yaml((folder / "config.yaml").read_text(encoding="utf-8"), str(folder / "config.yaml"))
            return config if isinstance(config, Mapping) else {}
    return {}


def _of_run(config: Mapping[str, Any], reward: FloatArray, groups: Sequence[Sequence[int]]) -> list[str]:
    """Return what the run's own beta is in raw reward units, in words; nothing where it has none."""
    training = config.get("training")
    beta = training.get("beta") if isinstance(training, Mapping) else None
    spread = math.sqrt(sum(float(reward[list(rows)].var(ddof=1)) for rows in groups) / len(groups))
    if not isinstance(beta, int | float) or not spread > 0:
        return []
    return [f"the run's beta {beta:g} is in units of the reward's SD within a prompt: here --beta {beta * spread:.4g}"]


def _padded(values: FloatArray, groups: Sequence[Sequence[int]], *, fill: float = 0.0) -> FloatArray:
    table = np.full((len(groups), max(map(len, groups))), fill)
    for row, positions in enumerate(groups):
        table[row, : len(positions)] = values[list(positions)]
    return table


def _log_shares(weights: FloatArray, groups: Sequence[Sequence[int]]) -> FloatArray:
    logs = _padded(np.log(weights), groups, fill=-np.inf)
    peak = logs.max(axis=1, keepdims=True)
    totals: FloatArray = peak + np.log(np.exp(logs - peak).sum(axis=1, keepdims=True))
    return logs - totals


def _prompt_weights(table: Table, groups: Sequence[Sequence[int]], *, given: bool) -> FloatArray:
    if not given:
        return np.full(len(groups), 1 / len(groups))
    values = numbers(table, "prompt_weight", positive=POSITIVE)
    for first, *others in groups:
        for position in others:
            if values[position] != values[first]:
                held = f"column 'prompt_weight' holds {float(values[position])!r}"
                wanted = f"{values[first]:g}, as in the prompt's first row"
                raise table.refusal(table.rows[position].line, f"{held}; expected {wanted}")
    shares: FloatArray = values[[positions[0] for positions in groups]]
    shares /= shares.max()
    shares /= shares.sum()
    return shares
