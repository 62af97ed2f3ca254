"""``dualign score``: a file of responses and a scorer -> the same rows with one more column."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dualign.errors import ConfigError, MissingError, UsageError

if TYPE_CHECKING:
    from dualign.data.responses import ResponseFile
    from dualign.records import FloatArray
    from dualign.scorers.protocol import Scorer

Direction = Literal["reward", "cost"]
FILES = (".yaml", ".yml", ".json")


def score(
    responses: Annotated[Path, typer.Argument(help="JSONL, CSV or Parquet with columns prompt, response.")],
    scorer: Annotated[str, typer.Option(help="A kind, a YAML or JSON file with kind and keys, or module:attribute.")],
    out: Annotated[Path, typer.Option(help="Where to write the rows: .jsonl, .csv or .parquet.")],
    direction: Annotated[
        Direction | None,
        typer.Option(help="reward (up is good) or cost (up is bad); default: the kind's, else reward."),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Name of the new column; default: the direction.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the scorer; repeat for several.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> None:
    """Score responses; the scorer's id and revision stand beside the numbers.

    Example: dualign score answers.jsonl --scorer length --set unit=words --direction cost --out scored.jsonl
    """
    from dualign.data.responses import read_responses
    from dualign.data.score_output import writer_for
    from dualign.runs.store import write_bytes

    write = writer_for(out)
    if out.exists() and responses.exists() and out.samefile(responses):
        raise UsageError(f"--out {out}: is the file of the responses; name another")
    spec, folder = described(scorer, settings or [])
    direction = direction or natural_direction(spec)
    content = read_responses(responses)
    name = column or direction
    if any(name in row for row in content.rows):
        raise UsageError(f"--column {name}: {responses} has such a column already; name another")
    built = _built(spec, direction, folder, typed=Path(scorer).suffix not in FILES)
    scores = built(content.prompts, content.responses)
    write_bytes(out, write(with_scores(content, name, scores, built)))
    figures = summary(scores, built, name, out)
    if as_json:
        print(json.dumps(figures, allow_nan=False))
    elif not quiet:
        print(
            f"{figures['rows']} responses, {name} by {built.id} ({built.direction}): "
            f"mean {figures['mean']:.4g}, from {figures['min']:.4g} to {figures['max']:.4g} -> {out}"
        )


def described(scorer: str, settings: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """Return the scorer's keys as typed or as in its file, and the folder that its paths start at.

    Raises:
        UsageError: a ``--set`` is not key=value.
        MissingError, ConfigError: the file is missing or broken.
    """
    from dualign.yaml_core import parse_yaml

    folder = Path()
    if Path(scorer).suffix in FILES:
        spec = _read(Path(scorer))
        folder = Path(scorer).parent
    elif ":" in scorer:
        spec = {"kind": "callable", "target": scorer}
    else:
        spec = {"kind": scorer}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key:
            raise UsageError(f"--set {setting!r}: key=value is needed, such as unit=words")
        spec[key] = parse_yaml(value, f"--set {key}")
    return spec, folder


def natural_direction(spec: Mapping[str, Any]) -> Direction:
    """Return the only direction that the kind allows, else ``reward``."""
    from dualign.scorers.table import KINDS

    kind = KINDS.get(str(spec.get("kind")))
    return (kind.direction if kind else None) or "reward"


def with_scores(content: "ResponseFile", name: str, scores: "FloatArray", scorer: "Scorer") -> list[dict[str, Any]]:
    """Return the rows with the score and who gave it; the names of earlier scorers are kept in front."""
    rows = []
    for row, number in zip(content.rows, scores.tolist(), strict=True):
        given = {"scorer": f"{name}={scorer.id}", "revision": f"{name}={scorer.revision}"}
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


def _read(path: Path) -> dict[str, Any]:
    from dualign.yaml_core import parse_yaml

    try:
        value = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise MissingError(f"--scorer {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--scorer {path}: is not UTF-8 ({error.reason})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {type(value).__name__}; a mapping with 'kind' is needed")
    return value


def _built(spec: Mapping[str, Any], direction: Direction, folder: Path, *, typed: bool) -> "Scorer":
    """Return the scorer; a mistake in what was typed is a mistake of usage, one in a file of the file."""
    from dualign.scorers.table import make_scorer

    try:
        return make_scorer(spec, direction=direction, folder=folder)
    except ConfigError as error:
        if typed:
            raise UsageError(str(error)) from None
        raise
