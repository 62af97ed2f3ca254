"""Which format rows are of, said by their columns; and what to say where they are of none."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dualign.data import table_files
from dualign.data.formats.chat_forms import (
    CONTEXT,
    CONTEXT_MESSAGES,
    CONVERSATIONS,
    INPUT,
    INSTRUCTION,
    JUDGED,
    MESSAGES,
    OUTPUTS,
    QUERY,
    QUESTION,
    REQUEST,
    RESPONSE_PAIRS,
    TRL_CHAT_EXPLICIT,
    TRL_CHAT_IMPLICIT,
    TRL_PLAIN_EXPLICIT,
    like_a_prompt,
    named_prompt,
)
from dualign.data.formats.preference import HELPSTEER, HH_RLHF, INTERNAL, SCORED_PAIRS, TRL_PLAIN_IMPLICIT, to_values
from dualign.data.formats.safety import (
    BEAVERTAILS,
    BEAVERTAILS_EVALUATION,
    PKU_PROCESSED_HH,
    PKU_SAFERLHF,
    PKU_SAFERLHF_QA,
    PKU_SAFERLHF_V0,
    SAFERLHF_V,
    SAFETY_PAIRS,
)
from dualign.data.formats.source import (
    READING_RULES,
    UNREADABLE,
    Format,
    PreferenceError,
    RowError,
    Values,
    literal,
    local_file,
    refusal,
)
from dualign.data.formats.turns import ATTACHED, check_attached, mixed, with_messages, with_system
from dualign.data.preferences import Fault, PreferenceFile, PreferenceRow
from dualign.data.prompts import column_text
from dualign.data.rows import TEXTUAL
from dualign.data.table_files import Row, encodable, ending, read_rows
from dualign.errors import DataError, UsageError, nearest
from dualign.runs.store import write_bytes


def recognised(rows: Sequence[Row], names: Iterable[str], formats: Iterable[Format]) -> Format | None:
    """Return the first format whose needed columns are all there and that knows the rows, or none."""
    present, values = set(names), [row.values for row in rows]
    return next((known for known in formats if present.issuperset(known.needs) and known.recognise(values)), None)


def renamed(rows: Sequence[Row], where: str, columns: Mapping[str, str], formats: Iterable[Format]) -> list[Row]:
    """Return the rows with each column, or what a path leads to, under the name it is read as.

    Raises:
        UsageError: no format reads a column of that name, or one column is to be read as two.
        DataError: the file has no such column.
    """
    formats = list(formats)
    known = list(dict.fromkeys(name for kind in formats if not kind.refusal for name in (*kind.needs, *kind.options)))
    for read in columns:
        if not any(kind.reads(read) for kind in formats):
            raise UsageError(f"columns: no format reads {read!r}; {nearest(read, known)}")
    return table_files.renamed(rows, where, columns)


def unknown(rows: Sequence[Row], names: Sequence[str], where: str, formats: Iterable[Format]) -> PreferenceError:
    """Return the error of columns that are no known format; it names the closest one if most of that is there."""
    values = [row.values for row in rows]
    readable = [known for known in formats if not known.refusal and known.recognise(values)]
    closest = min(readable, key=lambda known: len(_absent(known, names)) / len(known.needs))
    absent = _absent(closest, names)
    if 2 * len(absent) <= len(closest.needs):
        return missing(rows, names, where, closest, absent)
    given = ", ".join(repr(name) for name in names) or "none"
    likely = (like_a_prompt(values) or ["NAME"])[0]
    asked = "" if named_prompt(values) else f", prompt={likely}"
    answers = "completion=NAME, label=NAME" if {"label", "kto_tag"} & set(names) else "chosen=NAME, rejected=NAME"
    what = f"columns {given} are no known format of preferences; map them ({answers}{asked})"
    return refusal(where, (Fault("missing column", rows[0].line, what),))


def missing(
    rows: Sequence[Row], names: Sequence[str], where: str, known: Format, absent: Sequence[str]
) -> PreferenceError:
    """Return the error of a file without columns that its format needs."""
    free = [name for name in names if not known.reads(name)]
    lacks = "; ".join(f"no column {name!r}, {nearest(name, free)}" for name in absent)
    likely = like_a_prompt([row.values for row in rows]) if absent[0] == "prompt" else []
    what = f"read as {known.name}, the file has {lacks} (columns may be mapped: {absent[0]}={(likely or ['NAME'])[0]})"
    return refusal(where, (Fault("missing column", rows[0].line, what),))


def _absent(known: Format, names: Iterable[str]) -> list[str]:
    present = set(names)
    return [name for name in known.needs if name not in present]


FORMATS: dict[str, Format] = {
    known.name: known
    for known in (
        INTERNAL,
        PKU_SAFERLHF,
        PKU_SAFERLHF_V0,
        SAFERLHF_V,
        SCORED_PAIRS,
        PKU_SAFERLHF_QA,
        *HELPSTEER,
        BEAVERTAILS,
        SAFETY_PAIRS,
        PKU_PROCESSED_HH,
        HH_RLHF,
        TRL_CHAT_EXPLICIT,
        TRL_CHAT_IMPLICIT,
        TRL_PLAIN_EXPLICIT,
        CONTEXT_MESSAGES,
        CONVERSATIONS,
        MESSAGES,
        INSTRUCTION,
        *RESPONSE_PAIRS,
        QUESTION,
        QUERY,
        INPUT,
        CONTEXT,
        OUTPUTS,
        REQUEST,
        *JUDGED,
        TRL_PLAIN_IMPLICIT,
        BEAVERTAILS_EVALUATION,
    )
}
"""From the most particular to the most general; the first that fits is taken."""

NO_PROMPT = "no common prompt"  # of one row: that row is left out; of all rows: the file is refused


def read_preferences(
    path: str | Path, *, format: str | None = None, columns: Mapping[str, str] | None = None
) -> PreferenceFile:
    """Return what a preference file holds: its rows, and the faults of the rows that were left out.

    Args:
        path: JSONL, JSON list, CSV, TSV or Parquet, also gzipped; a folder with one such file; or
            ``org/name@revision``, a data set of the Hub that is in the local cache.
        format: a name of ``FORMATS``; none: recognised by the columns.
        columns: column of the file by the name that a format knows it by, ``{"chosen": "good_answer"}``.

    Raises:
        MissingError: there is no such file, or it cannot be read.
        UsageError: an unknown format, or a column that no format reads.
        DataError: the file is broken, of no known format, or a row breaks a rule that refuses the file
            (``PreferenceError``, with every such row in its ``faults``).
    """
    file = local_file(path)
    rows = read_rows(file)
    return preference_file(rows, str(path), format=format, columns=columns, textual=ending(file) in TEXTUAL)


def preference_file(
    rows: Sequence[Row],
    where: str,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    textual: bool = False,
) -> PreferenceFile:
    """Return the preferences of rows that were read from ``where``; other arguments and errors as above.

    ``textual``: every cell is a text, so that labels are read from what their texts say.
    """
    if not rows:
        raise DataError(f"{where}: has no rows")
    rows = renamed(rows, where, columns or {}, FORMATS.values())
    rows = with_messages(rows, FORMATS.values())
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    known = FORMATS.get(format) if format else recognised(rows, names, FORMATS.values())
    if format and known is None:
        raise UsageError(f"unknown format {format!r}; {nearest(format, FORMATS)}")
    if known is None:
        raise unknown(rows, names, where, FORMATS.values())
    if known.refusal:
        raise refusal(where, (Fault("refused format", rows[0].line, known.refusal),), known.name)
    if absent := [name for name in known.needs if name not in names]:
        raise missing(rows, names, where, known, absent)
    apart = mixed(rows, known)
    read = _settled([apart.get(row.line) or _read(row, known, textual) for row in rows], where, known.name)
    return PreferenceFile(
        path=where,
        format=known.name,
        rows=tuple(row for row in read if isinstance(row, PreferenceRow)),
        faults=tuple(row for row in read if isinstance(row, Fault)),
        total=len(rows),
        columns={name: (columns or {}).get(name, name) for name in names if known.reads(name)},
    )


def describe(file: PreferenceFile) -> str:
    """Return one line that says what a file was recognised as, and how much of it was read."""
    columns = ", ".join(read if read == name else f"{read} from {name!r}" for read, name in file.columns.items())
    counts = f"{len(file.rows):,} of {file.total:,} rows read"
    return f"{file.path}: {file.format} ({FORMATS[file.format].says}; columns {columns}), {counts}"


def _read(row: Row, known: Format, textual: bool) -> PreferenceRow | Fault:
    """Return the row with the columns that the format does not read as columns of its prompt, or what is wrong."""
    values = _literals(row.values, known) if textual else row.values
    try:
        check_attached({name: value for name, value in values.items() if not known.reads(name)})
        read = known.read_row(values, row.line)
        if isinstance(read, Fault):
            return read
        read = replace(read, prompt=with_system(read.prompt, values)) if known.systems else read
    except RowError as error:
        return Fault(error.rule, row.line, error.what)
    others = {name: text for name, value in values.items() if (text := _extra(name, value, known)) is not None}
    named = others.pop("split", None)
    prompt = replace(read.prompt, columns={**others, **read.prompt.columns}) if others else read.prompt
    return replace(read, prompt=prompt, split=named if read.split is None else read.split)


def _literals(values: Values, known: Format) -> Values:
    """Return the cells of a file of texts with every label as what its text stands for."""
    return {
        name: literal(value) if isinstance(value, str) and known.labels(name) else value
        for name, value in values.items()
    }


def _extra(name: str, value: object, known: Format) -> str | None:
    if known.reads(name) or (name in ATTACHED and not (isinstance(value, str) and isinstance(literal(value), str))):
        return None
    text = column_text(value)
    return text if text is not None and encodable(name + text) else None


def _settled(read: Sequence[PreferenceRow | Fault], where: str, format: str) -> list[PreferenceRow | Fault]:
    """Return what was read once nothing in it refuses the file.

    Raises:
        PreferenceError: a row breaks a rule of errors, no row at all has a common prompt, or none can be read.
    """
    faults = [row for row in read if isinstance(row, Fault)]
    errors = tuple(fault for fault in faults if READING_RULES[fault.rule] == "error" and fault.rule != NO_PROMPT)
    if errors:
        raise refusal(where, errors, format)
    apart = tuple(fault for fault in faults if fault.rule == NO_PROMPT)
    if apart and len(faults) == len(read):
        raise refusal(where, apart, format)
    unread = tuple(replace(fault, rule="no readable row") for fault in faults if fault.rule in UNREADABLE)
    if unread and len(faults) == len(read):
        raise refusal(where, unread, format)
    return [_left_out(row) if isinstance(row, Fault) else row for row in read]


def _left_out(fault: Fault) -> Fault:
    return replace(fault, rule="parting transcripts") if fault.rule == NO_PROMPT else fault


def _schema() -> Any:
    import pyarrow as pa

    column = pa.struct([("name", pa.string()), ("value", pa.string())])
    turn = pa.struct([("role", pa.string()), ("text", pa.string())])
    prompt = [("text", pa.string()), ("id", pa.string()), ("columns", pa.list_(column)), ("history", pa.list_(turn))]
    answer = [
        ("text", pa.string()),
        ("safe", pa.bool_()),
        ("severity", pa.int64()),
        ("categories", pa.list_(pa.string())),
        ("reward", pa.float64()),
        ("cost", pa.float64()),
        ("desirable", pa.bool_()),
    ]
    return pa.schema(
        [
            ("line", pa.int64()),
            ("prompt", pa.struct(prompt)),
            ("answers", pa.list_(pa.struct(answer))),
            ("better", pa.int64()),
            ("safer", pa.int64()),
            ("split", pa.string()),
        ]
    )


def write_parquet(rows: Iterable[PreferenceRow], path: str | Path) -> Path:
    """Return ``path`` once it holds the rows.

    Raises:
        DataError: a text has no form in UTF-8.
        StorageError: the disk refused; what was at ``path`` before is still there.
    """
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    try:
        table = pyarrow.Table.from_pylist([to_values(row) for row in rows], schema=_schema())
    except UnicodeEncodeError as error:
        raise DataError(f"{path}: a row holds half of a character (a lone surrogate): {error.reason}") from None
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return write_bytes(Path(path), sink.getvalue().to_pybytes())


def read_parquet(path: str | Path) -> tuple[PreferenceRow, ...]:
    """Return the rows that ``write_parquet`` wrote.

    Raises:
        MissingError: there is no such file.
        DataError: a damaged file, or one of other columns.
    """
    return read_preferences(path, format=INTERNAL.name).rows
