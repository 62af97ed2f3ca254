"""Where ``dualign compare`` comes in: all cells in turn, then the table and its pages."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dualign.compare.cells import (
    RECORD,
    Cell,
    cells,
    check_cell,
    failed,
    finished_before,
    fix_family,
    parse_arm,
    run_cell,
)
from dualign.compare.reading import Outcome, read_outcome
from dualign.compare.table import best, selected, summarise
from dualign.config import Config, load_config
from dualign.errors import DualignError, UsageError
from dualign.hashing import plain
from dualign.pipeline.job import Tell
from dualign.report.compare_page import comma_separated, markdown, page
from dualign.runs.lock import file_lock
from dualign.runs.store import read_json, write_json, write_text

FAMILY_LOCK = ".families.lock"


def compare_config(
    config: Path, methods: Sequence[str], seeds: Sequence[int], out: Path | None, given: list[str], tell: Tell
) -> dict[str, Any]:
    """Return the report of all cells; the pages stand in ``out``.

    Raises:
        UsageError: an unknown method, or no cell that finished.
        DataError: a cell's folder was made by another config: then none is trained.
        DualignError: the first method does not fit the config: then none is trained.
    """
    loaded = load_config(config, given)
    folder = Path("runs") / f"compare-{loaded.run.name}" if out is None else out
    todo = cells([parse_arm(name) for name in methods], list(seeds), folder)
    check_cell(todo[0], config, given)
    for cell in todo:
        if (cell.run / RECORD).exists():
            finished_before(cell, check_cell(cell, config, given))
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / FAMILY_LOCK):  # of two comparisons at one time, the second sees the cells of the first
        fix_family(todo, _configs(todo, config, given), folder)
    records = _train(todo, config, given, tell)
    done = [(cell, record) for cell, record in zip(todo, records, strict=True) if record["finished"]]
    broken = [(c, r) for c, r in zip(todo, records, strict=True) if not r["finished"]]
    if not done:
        raise UsageError(f"compare: no cell finished; the first said: {records[0]['error']}")
    ranks = {cell.arm.label: rank for rank, cell in enumerate(todo[: len(methods)])}
    done.sort(key=lambda pair: (ranks[pair[0].arm.label], pair[0].seed))
    outcomes = [read_outcome(cell.run, record) for cell, record in done]
    limits = dict(read_json(done[0][0].run / "result.json")["limits"])
    report = _report(loaded.run.name, outcomes, limits)
    report["failed"] = [f"{cell.arm.label}, seed {cell.seed}: {record['error']}" for cell, record in broken]
    report["exit_code"] = broken[0][1]["code"] if broken else 0
    _write(report, folder)
    return report


def _configs(todo: Sequence[Cell], config: Path, given: list[str]) -> dict[Path, Config]:
    """Return the config of every cell that has one; the others are refused when their turn comes."""
    found = {}
    for cell in todo:
        with suppress(DualignError):
            found[cell.run] = check_cell(cell, config, given)
    return found


def _train(todo: Sequence[Cell], config: Path, given: list[str], tell: Tell) -> list[dict[str, Any]]:
    """Return the record of every cell; the first that finishes under a seed lends its shared parts to the others."""
    finished: dict[int, Path] = {}
    records = []
    for cell in todo:
        try:
            record = run_cell(cell, config, given, tell, like=finished.get(cell.seed))
        except DualignError as error:
            tell(f"{cell.run.name}: {error}")
            record = failed(error)
        if record["finished"]:
            finished.setdefault(cell.seed, cell.run)
        records.append(record)
    return records


def _report(name: str, outcomes: Sequence[Outcome], limits: dict[str, float]) -> dict[str, Any]:
    rows = summarise(outcomes, limits)
    listed = [{key: value for key, value in asdict(o).items() if key != "by_prompt"} for o in outcomes]
    notes = [
        "Limits held: by truth in a known world, by the certificate on a language model; without one it is open.",
        "fit s is the time of training, with what a method samples for it; what methods share is left out.",
        "Methods without a limit of their own (MODPO, SACPO and others) get their multipliers by the same search.",
    ]
    notes += _certificates_in_words(outcomes)
    chosen = selected(rows)
    found = {
        "run": name,
        "verdict": "CERTIFIED" if chosen else "NO CERTIFIED POLICY",
        "limits": limits,
        "selected": chosen,
        "iterates": listed,
        "seconds": {row["method"]: row["fit_seconds"] for row in rows},
        "report": "compare.html",
        "rows": rows,
        "best": best(rows),
        "notes": notes,
    }
    return dict(plain(found))


def _certificates_in_words(outcomes: Sequence[Outcome]) -> list[str]:
    """Return what the certificates say together: each holds for its cell alone, the best of several needs more."""
    families = [outcome for outcome in outcomes if outcome.family]
    if not families:
        return []
    cells = max(int(outcome.family["cells"]) for outcome in families)
    hold = [f"{o.arm} (seed {o.seed})" for o in families if o.family["certified_as_best"]]
    return [
        f"Each certificate is for its cell alone, at its own delta. Who picks the best of {cells} cells needs "
        f"delta / {cells}: certified there too: {', '.join(hold) or 'none'}."
    ]


def _write(report: dict[str, Any], folder: Path) -> None:
    """Write the four pages."""
    write_json(folder / "compare.json", report)
    write_text(folder / "compare.csv", comma_separated(report))
    write_text(folder / "compare.md", markdown(report))
    write_text(folder / "compare.html", page(report))
