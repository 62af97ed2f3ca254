"""The files of a run directory that a report is made of, each checked against the manifest."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

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

    @property
    def selected(self) -> Row:
        """Return the figures of the selected policy; empty where none was."""
        return part(self.result, "selected")

    @property
    def reference(self) -> Row:
        """Return the figures of the reference."""
        return part(self.result, "reference")

    @property
    def iterates(self) -> list[Row]:
        """Return the policies of the run, in the order in which they were made."""
        return self.result.get("iterates") or []

    @property
    def limits(self) -> dict[str, float]:
        """Return the limit of every constraint that has one, in the order of the run."""
        return {str(name): float(value) for name, value in part(self.result, "limits").items() if is_figure(value)}


def part(row: Row, name: str) -> Row:
    """Return the object ``name`` of ``row``; empty where there is none."""
    return row.get(name) or {}


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
    present = {field: name for field, name in OPTIONAL.items() if (run / name).is_file()}
    return RunFiles(
        name=run.resolve().name,
        result=_read_object(run / "result.json", run),
        hashes={n: d for n, d in store.read_manifest(run).items() if not n.startswith("report.")},
        absent=tuple(name for name in OPTIONAL.values() if name not in present.values()),
        **{field: _read(run / name, run) for field, name in present.items()},
    )


def _read(path: Path, run: Path) -> Any:
    if path.suffix == ".parquet":
        columns = store.read_table(path, run=run)
        return tuple(dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
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


NOTHING = "–"


def is_figure(value: Any) -> TypeGuard[float]:
    """Return whether ``value`` is one finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def figure(value: Any, digits: int = 3) -> str:
    """Return ``value`` to ``digits`` significant digits; counts whole, in groups of three with thin spaces."""
    if not is_figure(value):
        return NOTHING
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}".replace(",", "\u202f").replace("-", "−")
    size = abs(value)
    if size != 0 and (size < 1e-4 or size >= 1e6):
        return f"{value:.{digits - 1}e}".replace("-", "−")
    decimals = max(0, digits - 1 - (math.floor(math.log10(size)) if size else 0))
    text = f"{value:.{min(decimals, 6)}f}"
    return _signed(text.rstrip("0").rstrip(".") if "." in text else text)


def measured(value: Any, error: Any) -> str:
    """Return ``value ± 1.96 error``: a 95 % interval, both to two significant digits of its half width."""
    if not is_figure(value):
        return NOTHING
    if not is_figure(error) or error <= 0:
        return figure(value)
    half = 1.96 * error
    decimals = min(6, max(0, 1 - math.floor(math.log10(half))))
    return _signed(f"{value:.{decimals}f} ± {half:.{decimals}f}")


def interval(low: Any, high: Any) -> str:
    """Return ``low to high`` in equal decimals."""
    if not (is_figure(low) and is_figure(high)):
        return NOTHING
    width = abs(high - low) or abs(high) or 1.0
    decimals = min(6, max(0, 2 - math.floor(math.log10(width))))
    return f"{_signed(f'{low:.{decimals}f}')} to {_signed(f'{high:.{decimals}f}')}"


def share(value: Any) -> str:
    """Return a share as per cent."""
    return f"{figure(100 * value)} %" if is_figure(value) else NOTHING


def duration(seconds: Any) -> str:
    """Return seconds as seconds, or as minutes from two minutes on."""
    if not is_figure(seconds):
        return NOTHING
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def multipliers(given: Any) -> str:
    """Return ``0.5`` for one multiplier, ``(0.5, 0.1)`` for several; empty for none."""
    if not isinstance(given, Mapping) or not given:
        return ""
    values = [figure(value, 2 if len(given) > 1 else 3) for value in given.values()]
    return values[0] if len(values) == 1 else f"({', '.join(values)})"


def _signed(text: str) -> str:
    """Return ``text`` with a real minus sign, and none before a leading figure that was rounded to zero."""
    return re.sub(r"^−(?=0(\.0*)?( |$))", "", text.replace("-", "−"))
