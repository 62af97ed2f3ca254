"""A file of scored responses of the reference -> the arrays that ``dualign plan`` solves.

Rows of ``prompt`` (text, messages, or an id alone as in a run's own scores), ``reward`` and ``cost`` (or
``cost_<name>`` columns); optional ``response``, ``weight`` (reference probability: the rows of a prompt are then its
whole support), ``prompt_weight``, ``scorer``, ``revision``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dualign.data.cost_file import cost_columns, numbers, prompt_cell, score_table, told_spellings
from dualign.data.layouts import mapping_hint
from dualign.data.tables import Source, Table
from dualign.errors import DataError, MissingError
from dualign.records import FloatArray, Prompt
from dualign.strict import parse_yaml

INSIDE = "inside_"
"""``inside_NAME`` in a run's own scores: whether the row's prompt lies in the slice of the cost NAME."""
POSITIVE = "leave out what has no probability"


@dataclass(frozen=True, slots=True)
class Scores:
    """Scored responses, raw units; prompts with fewer responses are padded."""

    prompts: tuple[str, ...]
    """In the order of first appearance."""
    asked: tuple[Prompt, ...]
    """The same with the turns before them."""
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
        prompts=tuple(prompts[positions[0]].text for positions in groups),
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
    table: Table,
    groups: Sequence[Sequence[int]],
    names: Sequence[str],
    weights: FloatArray,
    config: Mapping[str, Any],
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
