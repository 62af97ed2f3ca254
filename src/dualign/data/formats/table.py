"""Which format rows are of, said by their columns; and what to say where they are of none."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dualign.data.cells import RowError, Values, column_text, encodable, given, literal
from dualign.data.formats.chat_forms import CHAT_FORMS, like_a_prompt, named_prompt
from dualign.data.formats.labelled import BEAVERTAILS_EVALUATION, LABELLED
from dualign.data.preferences import (
    NO_PROMPT,
    READING_RULES,
    UNREADABLE,
    Fault,
    Format,
    PreferenceError,
    PreferenceFile,
    PreferenceRow,
    refusal,
)
from dualign.data.table_files import Row, local_file
from dualign.data.tables import Source, Table, check_readable, read_table, renamed
from dualign.data.turns import ATTACHED, PYTHON, SYSTEM, as_messages, check_attached, is_parts, with_system
from dualign.errors import UsageError, nearest

FORMATS = {known.name: known for known in (*LABELLED, *CHAT_FORMS, BEAVERTAILS_EVALUATION)}
"""From the most particular to the most general; the first that fits is taken."""
READ_AS = [
    *(name for known in FORMATS.values() if not known.refusal for name in (*known.needs, *known.options, *known.more)),
    *SYSTEM,
]
"""Names that columns may be renamed to."""


def read_preferences(
    source: Source, *, format: str | None = None, columns: Mapping[str, str] | None = None
) -> PreferenceFile:
    """Return what preference data hold: their rows, and the faults of the rows that were left out.

    Args:
        source: JSONL, JSON list, CSV, TSV or Parquet, also gzipped; a folder with one such file; ``org/name@revision``,
            a data set of the Hub that is in the local cache; or rows in memory (``tables.in_memory``).
        format: a name of ``FORMATS``; none: recognised by the columns.
        columns: column of the file by the name that a format knows it by, ``{"chosen": "good_answer"}``.

    Raises:
        MissingError: there is no such file, or it cannot be read.
        UsageError: an unknown format, or a column that no format reads.
        DataError: the file is broken, of no known format, or a row breaks a rule that refuses the file
            (``PreferenceError``, with every such row in its ``faults``).
    """
    return preference_file(preference_table(source), format=format, columns=columns)


def preference_table(source: Source) -> Table:
    """Return the rows of preference data as they stand, under the name that was given."""
    return read_table(local_file(source), named=str(source)) if isinstance(source, str | Path) else read_table(source)


def preference_file(
    table: Table, *, format: str | None = None, columns: Mapping[str, str] | None = None
) -> PreferenceFile:
    """Return the preferences of rows that were read; other arguments and errors as above."""
    check_readable(columns or {}, READ_AS, unknown="no format reads")
    table = _with_messages(renamed(table, columns or {}))
    names = table.columns
    known = _format(table, names, format)
    apart = mixed(table.rows, known)
    read = [apart.get(row.line) or _read(row, known, textual=table.textual) for row in table.rows]
    faults = tuple(row for row in read if isinstance(row, Fault))
    _check_faults(table, known, faults)
    return PreferenceFile(
        path=table.name,
        format=known.name,
        rows=tuple(row for row in read if isinstance(row, PreferenceRow)),
        faults=tuple(replace(one, rule="parting transcripts") if one.rule == NO_PROMPT else one for one in faults),
        total=len(table.rows),
        columns={name: (columns or {}).get(name, name) for name in names if known.reads(name)},
    )


def _format(table: Table, names: Sequence[str], format: str | None) -> Format:
    """Return the format of that name, or the first whose needed columns are all there and that knows the rows.

    Raises:
        UsageError: there is no such name.
        PreferenceError: the rows are of no format, of another, or of one that is refused.
    """
    if format and format not in FORMATS:
        raise UsageError(f"unknown format {format!r}; {nearest(format, FORMATS)}")
    present, values = set(names), [row.values for row in table.rows]
    fitting = (known for known in FORMATS.values() if present.issuperset(known.needs) and known.recognise(values))
    known = FORMATS[format] if format else next(fitting, None)
    if known is None:
        raise _unknown(table, names)
    if known.refusal:
        raise refusal(table, (Fault("refused format", table.rows[0].line, known.refusal),), known.name)
    if absent := [name for name in known.needs if name not in names]:
        raise _missing(table, names, known, absent)
    return known


def _unknown(table: Table, names: Sequence[str]) -> PreferenceError:
    """Return the error of columns that are no known format; it names the closest one if most of that is there."""
    values = [row.values for row in table.rows]
    readable = [known for known in FORMATS.values() if not known.refusal and known.recognise(values)]
    lacks = {known.name: [name for name in known.needs if name not in names] for known in readable}
    closest = min(readable, key=lambda known: len(lacks[known.name]) / len(known.needs))
    if 2 * len(absent := lacks[closest.name]) <= len(closest.needs):
        return _missing(table, names, closest, absent)
    shown = ", ".join(repr(name) for name in names) or "none"
    asked = "" if named_prompt(values) else f", prompt={(like_a_prompt(values) or ['NAME'])[0]}"
    answers = "completion=NAME, label=NAME" if {"label", "kto_tag"} & set(names) else "chosen=NAME, rejected=NAME"
    what = f"columns {shown} are no known format of preferences; map them ({answers}{asked})"
    return refusal(table, (Fault("missing column", table.rows[0].line, what),))


def _missing(table: Table, names: Sequence[str], known: Format, absent: Sequence[str]) -> PreferenceError:
    """Return the error of a file without columns that its format needs."""
    free = [name for name in names if not known.reads(name)]
    lacks = "; ".join(f"no column {name!r}, {nearest(name, free)}" for name in absent)
    likely = like_a_prompt([row.values for row in table.rows]) if absent[0] == "prompt" else []
    what = f"read as {known.name}, the file has {lacks} (columns may be mapped: {absent[0]}={(likely or ['NAME'])[0]})"
    return refusal(table, (Fault("missing column", table.rows[0].line, what),))


def _check_faults(table: Table, known: Format, faults: tuple[Fault, ...]) -> None:
    """Check that nothing refuses the file.

    Raises:
        PreferenceError: a row breaks a rule of errors, no row at all has a common prompt, or none can be read.
    """
    if errors := tuple(one for one in faults if READING_RULES[one.rule] == "error" and one.rule != NO_PROMPT):
        raise refusal(table, errors, known.name)
    if len(faults) < len(table.rows):
        return
    if apart := tuple(one for one in faults if one.rule == NO_PROMPT):
        raise refusal(table, apart, known.name)
    if unread := tuple(replace(one, rule="no readable row") for one in faults if one.rule in UNREADABLE):
        raise refusal(table, unread, known.name)


def describe(file: PreferenceFile) -> str:
    """Return one line that says what a file was recognised as, and how much of it was read."""
    columns = ", ".join(read if read == name else f"{read} from {name!r}" for read, name in file.columns.items())
    counts = f"{len(file.rows):,} of {file.total:,} rows read"
    return f"{file.path}: {file.format} ({FORMATS[file.format].says}; columns {columns}), {counts}"


def _read(row: Row, known: Format, *, textual: bool) -> PreferenceRow | Fault:
    """Return the row with the columns that the format does not read as columns of its prompt, or what is wrong."""
    values: Values = row.values
    if textual:
        values = {
            name: literal(value) if isinstance(value, str) and known.labels(name) else value
            for name, value in values.items()
        }
    try:
        check_attached({name: value for name, value in values.items() if not known.reads(name)})
        read = known.read_row(values)
        prompt = with_system(read.prompt, values) if known.systems else read.prompt
    except RowError as error:
        return Fault(error.rule, row.line, error.what)
    others = {name: text for name, value in values.items() if (text := _extra(name, value, known)) is not None}
    named = others.pop("split", None)
    if others:
        prompt = replace(prompt, columns={**others, **prompt.columns})
    return replace(
        read,
        line=read.line or row.line,
        prompt=prompt,
        split=named if read.split is None else read.split,
        raw=Row(row.line, values),
    )


def _extra(name: str, value: object, known: Format) -> str | None:
    if known.reads(name) or (name in ATTACHED and not (isinstance(value, str) and isinstance(literal(value), str))):
        return None
    text = column_text(value)
    return text if text is not None and encodable(name + text) else None


TEXT, MESSAGES, PRINTED = "a text", "a list of messages", "messages as Python prints them"
EITHER = {name for known in FORMATS.values() for name in known.either}


def _with_messages(table: Table) -> Table:
    """Return the table with the messages wherever a cell holds them as JSON, in any kind of file.

    Only columns that some format reads as texts or messages are looked at.
    """
    rows = []
    for row in table.rows:
        texts = {name: value for name, value in row.values.items() if name in EITHER and isinstance(value, str)}
        rows.append(Row(row.line, {**row.values, **{name: as_messages(value) for name, value in texts.items()}}))
    return replace(table, rows=rows)


def mixed(rows: Sequence[Row], known: Format) -> dict[int, Fault]:
    """Return the faults, by line, of rows with a text in a column that holds messages in most rows, or vice versa.

    Messages as Python prints them are neither.
    """
    found: dict[int, Fault] = {}
    for name in known.either:
        kinds = [_kind(row.values.get(name)) for row in rows]
        usual = Counter(kind for kind in kinds if kind in (TEXT, MESSAGES)).most_common(1)
        for row, kind in zip(rows, kinds, strict=True):
            if kind == PRINTED:
                what = f"{name} holds {PRINTED} ({str(row.values[name])[:12]!r}); write them as JSON"
                found.setdefault(row.line, Fault("not a text", row.line, what))
            elif kind and usual and kind != usual[0][0]:
                what = f"{name} is {given(row.values, name)}; {usual[0][0]} is needed, as in most rows"
                found.setdefault(row.line, Fault("mixed plain and chat", row.line, what))
    return found


def _kind(value: object) -> str:
    """Return what a cell holds: a text, messages, or messages as Python prints them; empty: none of these."""
    if isinstance(value, str) and PYTHON.fullmatch(value):
        return PRINTED
    if isinstance(value, str) or is_parts(value):
        return TEXT
    return MESSAGES if isinstance(value, list | Mapping) and value else ""
