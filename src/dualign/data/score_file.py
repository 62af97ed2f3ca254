"""A file of scored responses of the reference -> the arrays that ``dualign plan`` solves.

Rows of ``prompt`` (text, messages, or an id alone as in a run's own scores), ``reward`` and ``cost`` (or
``cost_<name>`` columns); optional ``response``, ``weight`` (reference probability: the rows of a prompt are then its
whole support), ``prompt_weight``, ``scorer``, ``revision``.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dualign.data.conversations import mapping_hint
from dualign.data.cost_file import PREFIX, cost_columns
from dualign.data.rows import PROMPTS, WITH, Row, number_cell, prompt_cell, read_rows, refuse, spelt_alike
from dualign.data.table_files import readable
from dualign.errors import DataError, MissingError, UsageError
from dualign.maths.exact import FloatArray
from dualign.records import Prompt
from dualign.strict import parse_yaml

INSIDE = "inside_"
"""``inside_NAME`` in a run's own scores: whether the row's prompt lies in the slice of the cost NAME."""
READ_AS = (*PROMPTS, *WITH, "reward", "cost", f"{PREFIX}*", "weight", "prompt_weight")
"""Names that columns may be renamed to."""


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


def read_scores(path: Path, *, columns: Mapping[str, str] | None = None) -> Scores:
    """Return the scores in ``path``: a table, or a run directory, which has its own.

    Prompts are told apart by their normalised text and all turns before it.

    ``columns``: column of the file by the name that it is read as.

    Raises:
        MissingError: the file is absent or cannot be read.
        UsageError: a name of ``columns`` that nothing is read as.
        DataError: an empty file or a faulty row; the message names file, line and column.
    """
    path = scores_path(path)
    readable(READ_AS, columns or {})
    what = "scored responses: prompt, reward and cost (or cost_NAME)"
    return scores_of(path, read_rows(path, what=what, columns=columns))


def scores_of(path: Path, rows: Sequence[tuple[int, Row]]) -> Scores:
    """Return the scores in numbered rows; ``path`` is what messages call the table.

    Raises:
        DataError: as ``read_scores``.
    """
    header = list(dict.fromkeys(key for _, row in rows for key in row))
    names = cost_columns(path, rows)
    if "reward" not in header:
        wanted = mapping_hint(rows[0][1], (), more="reward=COLUMN")
        raise DataError(f"{path}: no column 'reward'; the columns are {', '.join(header)}; {wanted}")
    prompts = [prompt_cell(path, line, row) for line, row in rows]
    members: dict[str, list[int]] = {}
    for position, prompt in enumerate(prompts):
        members.setdefault(prompt.id, []).append(position)
    for positions in members.values():
        if len(positions) < 2:
            text, line = prompts[positions[0]].text[:60], rows[positions[0]][0]
            raise DataError(f"{path}, line {line}: prompt {text!r} has one response; two are needed")
    values = {column: _numbers(path, rows, column) for column in ("reward", *names.values())}
    weights = _positive(path, rows, "weight") if "weight" in header else np.ones(len(rows))
    groups = list(members.values())
    prompt_weights = _prompt_weights(path, rows, groups, given="prompt_weight" in header)
    shares = _shares(path, rows, groups, list(names), prompt_weights)
    return Scores(
        prompts=tuple(prompts[positions[0]].text for positions in groups),
        asked=tuple(prompts[positions[0]] for positions in groups),
        log_weights=_log_shares(weights, groups),
        reward=_padded(values["reward"], groups),
        costs={name: _padded(values[column], groups) / shares.get(name, 1.0) for name, column in names.items()},
        prompt_weights=prompt_weights,
        draws="weight" not in header,
        notes=(*spelt_alike(prompts), *_of_run(path, values["reward"], groups)),
        shares=shares,
    )


def _shares(
    path: Path,
    rows: Sequence[tuple[int, Row]],
    groups: Sequence[Sequence[int]],
    names: Sequence[str],
    weights: FloatArray,
) -> dict[str, float]:
    """Return the weight of the prompts in the slice of each cost that has one, as the scores of a run tell it.

    Raises:
        DataError: the run has a slice, and its rows do not say what lies in it; or nothing does.
    """
    shares = {}
    for name in names:
        column = INSIDE + name
        if column not in rows[0][1]:
            continue
        inside = np.array([bool(rows[positions[0]][1].get(column)) for positions in groups])
        shares[name] = float(weights[inside].sum())
        if not shares[name] > 0:
            raise DataError(f"{path}: no prompt lies in the slice of the cost {name!r} ({column} is false everywhere)")
    limits = _run_config(path).get("constraints")
    sliced = [row.get("name") for row in limits or () if isinstance(row, Mapping) and row.get("where")]
    untold = [name for name in sliced if name in names and name not in shares]
    if untold:
        raise DataError(
            f"{path}: the run's cost {untold[0]!r} is about a slice of the prompts (where), and the rows do not say "
            f"which lie in it; its RUN/scores/reference.parquet does, by the column {INSIDE}{untold[0]}"
        )
    return shares


def _run_config(path: Path) -> Mapping[str, Any]:
    """Return the config of the run that a file lies in; empty where it lies in none."""
    for folder in path.absolute().parents:
        if (folder / "state.json").is_file() and (folder / "config.yaml").is_file():
            config = parse_yaml((folder / "config.yaml").read_text(encoding="utf-8"), str(folder / "config.yaml"))
            return config if isinstance(config, Mapping) else {}
    return {}


def _of_run(path: Path, reward: FloatArray, members: Sequence[Sequence[int]]) -> list[str]:
    """Return what the run's own beta is in raw reward units, in words; nothing where the file lies in no run."""
    training = _run_config(path).get("training")
    beta = training.get("beta") if isinstance(training, Mapping) else None
    spread = math.sqrt(sum(float(reward[list(rows)].var(ddof=1)) for rows in members) / len(members))
    if not isinstance(beta, int | float) or not spread > 0:
        return []
    return [f"the run's beta {beta:g} is in units of the reward's SD within a prompt: here --beta {beta * spread:.4g}"]


def _numbers(path: Path, rows: Sequence[tuple[int, Row]], column: str) -> FloatArray:
    return np.array([number_cell(path, line, row, column) for line, row in rows])


def _positive(path: Path, rows: Sequence[tuple[int, Row]], column: str) -> FloatArray:
    values = _numbers(path, rows, column)
    for (line, _), value in zip(rows, values, strict=True):
        if not value > 0:
            refuse(path, line, column, float(value), "a number above 0 (leave out what has no probability)")
    return values


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


def _prompt_weights(
    path: Path, rows: Sequence[tuple[int, Row]], groups: Sequence[Sequence[int]], *, given: bool
) -> FloatArray:
    if not given:
        return np.full(len(groups), 1 / len(groups))
    values = _positive(path, rows, "prompt_weight")
    for positions in groups:
        for position in positions[1:]:
            if values[position] != values[positions[0]]:
                wanted = f"{values[positions[0]]:g}, as in the prompt's first row"
                refuse(path, rows[position][0], "prompt_weight", float(values[position]), wanted)
    first = np.array([values[positions[0]] for positions in groups])
    shares: FloatArray = first / first.max()
    shares /= shares.sum()
    return shares


Rows = Sequence[Mapping[str, Any]]
EXCERPT = 200
"""Characters of a reason: some quote a whole cell."""


def _jsonl(rows: Rows) -> bytes:
    try:
        lines = [json.dumps(dict(row), ensure_ascii=False, allow_nan=False) for row in rows]
        return "".join(f"{line}\n" for line in lines).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"a column that was carried along has no JSON form ({error}); write Parquet") from None


def _csv(rows: Rows) -> bytes:
    names = _names(rows)
    text = io.StringIO(newline="")
    # All texts in quotes: by default a lone carriage return gets none, and readers take it for the end of a row.
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="", quoting=csv.QUOTE_NONNUMERIC)
    try:
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
        return text.getvalue().encode()
    except (csv.Error, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"a column that was carried along has no CSV form ({error}); write JSONL") from None


def _cell(value: Any) -> Any:
    """Return a value as a cell of a file of texts: lists and objects as JSON, which is how they are read back."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _parquet(rows: Rows) -> bytes:
    import pyarrow
    import pyarrow.parquet

    columns = {name: _arrow([row.get(name) for row in rows], name) for name in _names(rows)}
    buffer = io.BytesIO()
    try:
        pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    except (pyarrow.ArrowException, ValueError) as error:
        reason = str(error).splitlines()[0][:EXCERPT]
        raise DataError(f"a column that was carried along has no Parquet form ({reason}); write JSONL") from None
    return buffer.getvalue()


def _arrow(values: Sequence[Any], name: str) -> Any:
    """Return ``values`` as one column, which has one type."""
    import pyarrow

    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError, ValueError) as error:
        reason = str(error).splitlines()[0][:EXCERPT]
        raise DataError(f"column {name!r} has no Parquet form ({reason}); write JSONL") from None


def _names(rows: Rows) -> list[str]:
    return list({name: None for row in rows for name in row})


WRITERS: dict[str, Callable[[Rows], bytes]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}


def writer_for(path: Path) -> Callable[[Rows], bytes]:
    """Return what turns rows into the bytes of a file with this name, or raises ``DataError`` where it cannot.

    Raises:
        UsageError: the ending is unknown.
    """
    if path.suffix.lower() not in WRITERS:
        raise UsageError(f"{path}: unknown ending {path.suffix!r}; known: {', '.join(WRITERS)}")
    return WRITERS[path.suffix.lower()]
