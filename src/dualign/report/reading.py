"""The files of a run directory that a report is made of, each checked against the manifest."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dualign.errors import DataError, MissingError
from dualign.runs import store

Row = Mapping[str, Any]

OPTIONAL = {
    "config": "config.yaml",
    "certificate": "certificate.json",
    "comparisons": "report/comparisons.json",
    "answers": "report/answers.parquet",
    "exact": "exact.json",
    "reference_scores": "scores/reference.parquet",
    "data": "data/summary.json",
}


@dataclass(frozen=True, slots=True)
class RunFiles:
    """What the files of one run say; an optional file that is absent is empty here and named in ``absent``."""

    name: str
    result: Row
    config: str = ""
    certificate: Row = field(default_factory=dict)
    comparisons: tuple[Row, ...] = ()
    answers: tuple[Row, ...] = ()
    exact: Row = field(default_factory=dict)
    reference_scores: tuple[Row, ...] = ()
    data: Row = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()


def read_run(run: Path) -> RunFiles:
    """Return the content of every file of ``run`` that the report shows.

    Raises:
        MissingError: there is no run directory, or no result in it yet.
        DataError: a file is damaged, or was not written by the run; it is named.
    """
    if not run.is_dir():
        raise MissingError(f"{run}: no such run directory")
    if not (run / "result.json").is_file():
        raise MissingError(f"{run}: holds no result.json: the run is not finished; give the train command again")
    present = {part: name for part, name in OPTIONAL.items() if (run / name).is_file()}
    found = {part: _read(run / name, run) for part, name in present.items()}
    hashes = {n: d for n, d in store.read_manifest(run).items() if not n.startswith("report.")}
    absent = tuple(name for part, name in OPTIONAL.items() if part not in present)
    return RunFiles(
        name=run.resolve().name, result=_read_object(run / "result.json", run), hashes=hashes, absent=absent, **found
    )


def _read(path: Path, run: Path) -> Any:
    if path.suffix == ".parquet":
        return as_rows(store.read_table(path, run=run))
    if path.suffix == ".yaml":
        return store.read_text(path, run=run)
    if path.name == "comparisons.json":
        rows = store.read_json(path, run=run)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path}: must be a list of objects")
        return tuple(rows)
    return _read_object(path, run)


def _read_object(path: Path, run: Path) -> Row:
    value = store.read_json(path, run=run)
    if not isinstance(value, dict):
        raise DataError(f"{path}: must be a JSON object, is {type(value).__name__}")
    return value


def as_rows(columns: Mapping[str, list[Any]]) -> tuple[Row, ...]:
    """Return the rows of a table that is given by columns."""
    names = list(columns)
    return tuple(dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True))
