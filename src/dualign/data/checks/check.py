"""The check of preference files: every rule, counted, and what would be left of the data; and that, written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_args

from dualign.data.checks.group_rules import GROUP_CHECKS
from dualign.data.checks.reading import (
    MAX_LENGTH,
    WHOLE_FILE,
    WORDS,
    Context,
    Limits,
    Measure,
    measured,
    read,
)
from dualign.data.checks.rules import CHOSEN, ROW_RULES, RULES, Severity, mended, unsound
from dualign.data.checks.statistics import statistics, summary
from dualign.data.preferences import Fault, PreferenceFile, PreferenceRow
from dualign.data.table_files import READERS
from dualign.errors import DataError, UsageError, nearest
from dualign.runs.store import write_bytes

Contradictory = Literal["drop", "fix", "error"]
"""What becomes of a row whose safer answer is flagged unsafe while another is flagged safe."""
MAX_DROP = 0.1

WHOLE = {"identical pair": "every pair identical", "prompt too long": "all prompts too long"}
"""What the file breaks if every row of it breaks a rule of drops."""


@dataclass(frozen=True, slots=True)
class RuleCount:
    """One rule that fired."""

    rule: str
    severity: Severity
    count: int
    """Rows that break it; a fault of a whole file counts one."""
    rows_of_files: tuple[tuple[int, ...], ...]
    """For each file the 1-based lines of these rows, ascending."""
    what: str
    """What was found first."""

    @property
    def rows(self) -> list[int]:
        """Return the lines of all files, file after file."""
        return [line for lines in self.rows_of_files for line in lines]


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """One file after the check."""

    reading: PreferenceFile
    faults: tuple[Fault, ...]
    """Everything found, by the file's own lines."""
    dropped: tuple[Fault, ...]
    """Those of rows that are left out and counted."""
    fixed: tuple[Fault, ...]
    """Those of kept rows that were changed."""
    kept: tuple[PreferenceRow, ...]
    """Rows without errors and drops, as they are to be used."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found in all files together."""

    format: str
    """Names of the files' formats, each once; empty: none was recognised."""
    rows: int
    kept: int
    dropped: int
    """Rows that break a rule of drops."""
    chosen: int
    """Those of them that are left out for nothing but a length which the job's own config chooses."""
    errors: int
    """Faults that refuse the data."""
    rules: tuple[RuleCount, ...]
    statistics: Mapping[str, Any]
    """Of all rows that could be read and are sound, dropped ones included."""
    max_drop: float
    files: tuple[CheckedFile, ...]

    @property
    def accepted(self) -> bool:
        """Return whether the data may be trained on: no errors, no more dropped than allowed, and a row is left."""
        return self.errors == 0 and self.dropped - self.chosen <= self.max_drop * self.rows and self.kept > 0

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``dualign data check --json``."""
        return {
            "format": self.format,
            "rows": self.rows,
            "kept": self.kept,
            "dropped": self.dropped,
            "errors": self.errors,
            "rules": [self._rule_json(one) for one in self.rules],
            "statistics": dict(self.statistics),
            "accepted": self.accepted,
            "max_drop": self.max_drop,
            "files": [
                {"path": path, "format": one.reading.format, "rows": one.reading.total, "kept": len(one.kept)}
                for path, one in zip(self.paths, self.files, strict=True)
            ],
        }

    @property
    def paths(self) -> list[str]:
        """Return the files as they were named."""
        return [one.reading.path for one in self.files]

    def _rule_json(self, one: RuleCount) -> dict[str, Any]:
        found: dict[str, Any] = {"rule": one.rule, "severity": one.severity, "count": one.count, "rows": one.rows}
        if len(self.files) > 1:  # a line alone does not say of which file
            found["rows_of_files"] = [
                {"path": path, "rows": list(lines)} for path, lines in zip(self.paths, one.rows_of_files, strict=True)
            ]
        return {**found, "what": one.what, "fix": RULES[one.rule].fix}


def check(
    files: Sequence[str | Path],
    *,
    max_length: int | Limits = MAX_LENGTH,
    measure: Measure = WORDS,
    max_drop: float = MAX_DROP,
    contradictory: Contradictory = "drop",
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> CheckReport:
    """Return what is wrong with preference files and what they are made of; of several files each is a split.

    Args:
        files: as ``read_preferences`` takes them.
        max_length: tokens that prompt and answer may have together, or limits of each.
        measure: how tokens are counted.
        max_drop: largest share of rows that may be dropped, in [0, 1].
        contradictory: what becomes of contradictory rows; ``fix`` makes the answer that is flagged safe the safer one.
        format: name of the files' format; none: recognised by the columns.
        columns: column of the files by the name that a format knows it by.

    Raises:
        UsageError: an argument is out of range, or names no format or column that is known.
        MissingError: a file is missing or cannot be opened.
    """
    limits = max_length if isinstance(max_length, Limits) else Limits(max_length)
    _check_settings(files, limits.together, max_drop, contradictory)
    readings = [read(path, format=format, columns=columns) for path in files]
    return check_readings(readings, limits=limits, measure=measure, max_drop=max_drop, contradictory=contradictory)


def check_readings(
    readings: Sequence[PreferenceFile],
    *,
    limits: Limits,
    measure: Measure = WORDS,
    max_drop: float = MAX_DROP,
    contradictory: Contradictory = "drop",
) -> CheckReport:
    """Return what is wrong with files that were read, as ``check`` does."""
    placed = _placed(readings)
    rows = [row for _, row in placed]
    faults, context, sound = check_rows(rows, limits=limits, measure=measure)
    by_file: list[list[Fault]] = [list(reading.faults) for reading in readings]
    for fault in faults:
        number, line = placed[fault.line][0]
        by_file[number].append(replace(fault, line=line))
    for reading, found in zip(readings, by_file, strict=True):
        found += _of_every_row(reading, found)
    severities = _severities(contradictory)
    checked = [_checked(reading, found, severities) for reading, found in zip(readings, by_file, strict=True)]
    rules = _counts([one.faults for one in checked], severities)
    return CheckReport(
        format=", ".join(dict.fromkeys(reading.format for reading in readings if reading.format)),
        rows=sum(reading.total for reading in readings),
        kept=sum(len(one.kept) for one in checked),
        dropped=sum(len({fault.line for fault in one.dropped}) for one in checked),
        chosen=sum(len(_chosen(one)) for one in checked),
        errors=sum(one.count for one in rules if one.severity == "error"),
        rules=rules,
        statistics=statistics(sound, context),
        max_drop=max_drop,
        files=tuple(checked),
    )


def check_rows(
    rows: Sequence[PreferenceRow], *, limits: Limits | None = None, measure: Measure = WORDS
) -> tuple[list[Fault], Context, list[PreferenceRow]]:
    """Return (faults, context, sound rows) of rows that were read; each needs a line of its own."""
    faults = [fault for row in rows for fault in unsound(row)]
    out = {fault.line for fault in faults}
    sound = [row for row in rows if row.line not in out and row.answers]
    context = Context(limits or Limits(), measure, {row.line: measured(row, measure) for row in sound})
    for name, of_row in ROW_RULES.items():
        faults += [Fault(name, row.line, what) for row in sound if (what := of_row(row, context))]
    for check in GROUP_CHECKS:
        faults += check(sound)
    return faults, context, sound


def _check_settings(files: Sequence[str | Path], max_length: int, max_drop: float, contradictory: str) -> None:
    if not files:
        raise UsageError("data check: no file given; name one at least")
    if max_length < 1:
        raise UsageError(f"max_length: given {max_length}; 1 token at least is needed")
    if not 0 <= max_drop <= 1:
        raise UsageError(f"max_drop: given {max_drop:g}; a share from 0 to 1 is needed")
    if contradictory not in get_args(Contradictory):
        raise UsageError(f"contradictory: unknown {contradictory!r}; {nearest(contradictory, get_args(Contradictory))}")


def _placed(readings: Sequence[PreferenceFile]) -> list[tuple[tuple[int, int], PreferenceRow]]:
    """Return ((file, line), row) of all rows; the row's own line is its position here, its split one of its file.

    Of several files each is a split, whatever a column says: two rows are on one side if file and column agree.
    """
    placed: list[tuple[tuple[int, int], PreferenceRow]] = []
    for number, (reading, name) in enumerate(zip(readings, _file_splits(readings), strict=True)):
        for row in reading.rows:
            split = row.split if name is None else f"{name} ({row.split})" if row.split else name
            placed.append(((number, row.raw.line), replace(row, line=len(placed), split=split)))
    return placed


def _file_splits(readings: Sequence[PreferenceFile]) -> list[str | None]:
    """Return the name of each file as a split, none for a single one; a file that is given twice has two names."""
    if len(readings) == 1:
        return [None]
    paths = [reading.path for reading in readings]
    return [f"{path} [file {number}]" if paths.count(path) > 1 else path for number, path in enumerate(paths, start=1)]


def _severities(contradictory: Contradictory) -> dict[str, Severity]:
    policy: dict[Contradictory, Severity] = {"drop": "drop", "fix": "warn", "error": "error"}
    return {**{name: rule.severity for name, rule in RULES.items()}, "contradictory row": policy[contradictory]}


def _of_every_row(reading: PreferenceFile, faults: Sequence[Fault]) -> list[Fault]:
    lines = {rule: {fault.line for fault in faults if fault.rule == rule} for rule in WHOLE}
    found = [rule for rule, broken in lines.items() if 0 < len(broken) == reading.total]
    return [Fault(WHOLE[rule], WHOLE_FILE, f"all {reading.total} rows break the rule {rule!r}") for rule in found]


def _checked(reading: PreferenceFile, faults: Sequence[Fault], severities: Mapping[str, Severity]) -> CheckedFile:
    dropped = tuple(fault for fault in faults if severities[fault.rule] == "drop")
    out = {fault.line for fault in faults if severities[fault.rule] == "error"} | {fault.line for fault in dropped}
    kept = tuple(row for row in reading.rows if row.raw.line not in out)
    if severities["contradictory row"] != "warn":
        return CheckedFile(reading, tuple(faults), dropped, (), kept)
    fixed = tuple(fault for fault in faults if fault.rule == "contradictory row" and fault.line not in out)
    return CheckedFile(reading, tuple(faults), dropped, fixed, tuple(map(mended, kept)))


def _chosen(one: CheckedFile) -> set[int]:
    """Return the lines that break the config's own rule of lengths and no other."""
    others = {fault.line for fault in one.dropped if fault.rule != CHOSEN}
    return {fault.line for fault in one.dropped if fault.rule == CHOSEN} - others


def _counts(by_file: Sequence[Sequence[Fault]], severities: Mapping[str, Severity]) -> tuple[RuleCount, ...]:
    """Return the rules that fired, errors first, otherwise in the order of the table."""
    counted = []
    for name in sorted(RULES, key=lambda rule: ("error", "drop", "warn").index(severities[rule])):
        found = [[fault for fault in faults if fault.rule == name] for faults in by_file]
        every = [fault for faults in found for fault in faults]
        if every:
            lines = tuple(tuple(sorted({fault.line for fault in faults} - {WHOLE_FILE})) for faults in found)
            count = sum(map(len, lines)) + sum(fault.line == WHOLE_FILE for fault in every)
            counted.append(RuleCount(name, severities[name], count, lines, every[0].what))
    return tuple(counted)


def verdict(report: CheckReport) -> str:
    """Return one sentence: fit for training or not, and how many rows are left."""
    share = report.dropped / report.rows if report.rows else 0.0
    counts = f"{report.kept:,} of {report.rows:,} rows kept, {report.dropped:,} dropped ({share:.1%})"
    if report.errors:
        return f"Refused: {report.errors:,} error{'s' if report.errors > 1 else ''}; {counts}."
    if not report.kept:
        return f"Refused: nothing is left; {counts}."
    if report.chosen:
        counts += f", {report.chosen:,} of them for an answer that is too long"
    if not report.accepted:
        return f"Refused: {counts}, {report.max_drop:.1%} are allowed (--max-drop)."
    return f"Fit for training: {counts}."


def in_words(report: CheckReport) -> dict[str, Any]:
    """Return what the report of a run shows of the check: verdict, rules that fired, statistics."""
    rules = [
        {"rule": one.rule, "severity": one.severity, "count": one.count, "lines": one.rows[:3], "what": one.what}
        for one in report.rules
    ]
    told = [list(line) for line in summary(report.statistics)] if report.statistics["prompts"] else []
    return {
        "files": report.paths,
        "format": report.format,
        "verdict": verdict(report),
        "accepted": report.accepted,
        "rules": rules,
        "summary": told,
    }


SAFER_COLUMNS = ("safer_response_id", "safer")
"""Where formats with flags keep the number of the safer answer, counted from 0."""


def write_clean(report: CheckReport, out: Path) -> list[Path]:
    """Return the files written: for each file its kept rows as JSONL and, beside it, the ledger of the others.

    Columns have the names that the format knows them by, and cells of CSV the type that their texts stand for, so that
    the file is recognised without any option. A column that JSON cannot hold (an image) is null. Of one file ``out`` is
    the new file; of several it is a folder, and the new files have the names of the old ones.

    Raises:
        DataError: the check did not accept the data.
        UsageError: ``out`` is no name for them (``clean_paths``).
        StorageError: the disk refused.
    """
    names = clean_paths(report.paths, out)
    if not report.accepted:
        raise DataError("nothing is written: the data are refused as they stand")
    written = []
    for checked, path in zip(report.files, names, strict=True):
        written.append(write_bytes(path, _lines(kept_rows(checked))))
        written.append(write_bytes(ledger_path(path), _lines(ledger(checked))))
    return written


def kept_rows(checked: CheckedFile) -> Iterator[dict[str, Any]]:
    """Yield the kept rows of a file under the columns of their format; of a row that was fixed with its winner."""
    fixed = {fault.line for fault in checked.fixed}
    for row in checked.kept:
        values = {name: _jsonable(value) for name, value in row.raw.values.items()}
        winner = {name: row.safer for name in SAFER_COLUMNS if name in values and row.raw.line in fixed}
        yield {**values, **winner}


def ledger(checked: CheckedFile) -> Iterator[dict[str, Any]]:
    """Yield line, rule and reason of each row that was left out or changed, one entry for each rule, by line."""
    actions = [(fault, "dropped") for fault in checked.dropped] + [(fault, "fixed") for fault in checked.fixed]
    for fault, action in sorted(actions, key=lambda entry: entry[0].line):
        yield {"line": fault.line, "rule": fault.rule, "what": fault.what, "action": action}


def ledger_path(path: Path) -> Path:
    """Return where the ledger of a cleaned file is: beside it, as NAME.dropped.jsonl."""
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.dropped.jsonl")


def clean_paths(files: Sequence[str | Path], out: Path) -> list[Path]:
    """Return the new file of each of these files; nothing is read.

    Raises:
        UsageError: ``out`` is no name of a JSONL file, of several files no folder, is one of the files, or two files
            would get one name.
    """
    try:
        return _paths([Path(file) for file in files], out)
    except OSError as error:  # too long a name, or no right to look
        raise UsageError(f"--clean {out}: cannot be written ({error.strerror}); name another") from None


def _paths(sources: Sequence[Path], out: Path) -> list[Path]:
    if len(sources) == 1:
        if out.is_dir():
            such = out / "kept.jsonl"
            raise UsageError(f"--clean {out}: is a folder; of one file name the new file, such as {such}")
        if out.suffix.lower() != ".jsonl":
            raise UsageError(f"--clean {out}: the rows are written as JSONL; a name that ends with .jsonl is needed")
        names = [out]
    elif out.exists() and not out.is_dir():
        raise UsageError(f"--clean {out}: is a file; of several files name a folder")
    else:
        names = [out / f"{_without_ending(source.absolute().name)}.jsonl" for source in sources]
    written = [*names, *map(ledger_path, names)]
    if len(set(written)) < len(written):
        both = next(name for name in written if written.count(name) > 1)
        raise UsageError(f"--clean {out}: two files would both be written to {both}; clean them one by one")
    for name in written:
        if any(name.exists() and source.exists() and name.samefile(source) for source in sources):
            raise UsageError(f"--clean {out}: {name} is a file that is checked; name another")
    return names


def _without_ending(name: str) -> str:
    """Return a name without the ending that named its reader; other dots belong to the name."""
    bare = name[:-3] if name.lower().endswith(".gz") else name
    known = Path(bare).suffix
    return bare.removesuffix(known) if known.lower() in READERS else bare


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inner) for inner in value]
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, date | time):
        return value.isoformat()
    return value if value is None or isinstance(value, str | int) else None


def _lines(rows: Iterator[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
