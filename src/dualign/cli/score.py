"""``dualign score``: a file of responses and a scorer -> the same rows with one more column."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dualign.cli.columns import Columns, mapping
from dualign.cli.named_scorer import Direction, named_scorer
from dualign.errors import UsageError, inert

GIVER = ("scorer", "revision")
"""Columns that say who gave the scores."""

if TYPE_CHECKING:
    from dualign.data.responses import ResponseFile
    from dualign.records import FloatArray
    from dualign.scorers.protocol import Scorer


def score(
    responses: Annotated[
        Path, typer.Argument(help="JSONL, CSV or Parquet: prompt and response, as texts or messages.")
    ],
    scorer: Annotated[str, typer.Option(help="A kind, kind=K,key=value, a YAML or JSON file, or module:attribute.")],
    out: Annotated[Path, typer.Option(help="Where to write the rows: .jsonl, .csv or .parquet.")],
    direction: Annotated[
        Direction | None,
        typer.Option(help="reward (up is good) or cost (up is bad); default: the kind's, else reward."),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Name of the new column; default: the direction.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the scorer; repeat for several.")
    ] = None,
    columns: Columns = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> None:
    """Score responses; the scorer's id and revision stand beside the numbers.

    Example: dualign score answers.jsonl --scorer length --set unit=words --direction cost --out scored.jsonl
    """
    import numpy as np

    from dualign.data.responses import read_responses
    from dualign.data.score_output import writer_for
    from dualign.runs.store import write_bytes

    write = writer_for(out)
    if out.exists() and responses.exists() and out.samefile(responses):
        raise UsageError(f"--out {out}: is the file of the responses; name another")
    named = named_scorer(scorer, settings or [], direction=direction, default="reward")
    content = read_responses(responses, rename=mapping(columns))
    name = column or named.direction
    if name in GIVER:
        raise UsageError(f"--column {name}: is where it is said who gave the score; name another")
    if any(name in row for row in content.rows):
        raise UsageError(f"--column {name}: {responses} has such a column already; name another")
    built = named.build()
    # What the format has no room for is told now, and not after hours of scoring.
    write(with_scores(content, name, np.zeros(len(content.rows)), built))
    scores = built(content.prompts, content.responses)
    write_bytes(out, write(with_scores(content, name, scores, built)))
    figures = summary(scores, built, name, out)
    if as_json:
        print(json.dumps(figures, allow_nan=False))
    elif not quiet:
        said = (
            f"{figures['rows']} responses, {name} by {built.id} ({built.direction}): "
            f"mean {figures['mean']:.4g}, from {figures['min']:.4g} to {figures['max']:.4g} -> {out}"
        )
        print(inert(said))


def with_scores(content: "ResponseFile", name: str, scores: "FloatArray", scorer: "Scorer") -> list[dict[str, Any]]:
    """Return the rows with the score and who gave it; the names of earlier scorers are kept in front."""
    given = dict(zip(GIVER, (f"{name}={scorer.id}", f"{name}={scorer.revision}"), strict=True))
    rows = []
    for row, number in zip(content.rows, scores.tolist(), strict=True):
        joined = {key: f"{row[key]}; {value}" if row.get(key) else value for key, value in given.items()}
        rows.append({**row, name: number, **joined})
    return rows


def summary(scores: "FloatArray", scorer: "Scorer", column: str, out: Path) -> dict[str, Any]:
    """Return the figures that ``--json`` prints."""
    return {
        "rows": len(scores),
        "scorer": scorer.id,
        "revision": scorer.revision,
        "direction": scorer.direction,
        "column": column,
        "mean": float(scores.mean()),
        "sd": float(scores.std(ddof=1)) if len(scores) > 1 else None,
        "min": float(scores.min()),
        "max": float(scores.max()),
        "out": str(out),
    }
