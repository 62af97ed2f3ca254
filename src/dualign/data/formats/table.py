"""The table of formats, and the one function that reads a preference file by it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dualign.data.formats.beavertails import BEAVERTAILS
from dualign.data.formats.beavertails_evaluation import BEAVERTAILS_EVALUATION
from dualign.data.formats.cells import Values, literal
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
)
from dualign.data.formats.faults import READING_RULES, UNREADABLE, RowError, refusal
from dualign.data.formats.helpsteer import HELPSTEER
from dualign.data.formats.hh_rlhf import HH_RLHF
from dualign.data.formats.internal import INTERNAL
from dualign.data.formats.messages import mixed, with_messages
from dualign.data.formats.pku_processed_hh import PKU_PROCESSED_HH
from dualign.data.formats.pku_saferlhf import PKU_SAFERLHF
from dualign.data.formats.pku_saferlhf_qa import PKU_SAFERLHF_QA
from dualign.data.formats.pku_saferlhf_v0 import PKU_SAFERLHF_V0
from dualign.data.formats.recognition import missing, recognised, renamed, unknown
from dualign.data.formats.rows import Format
from dualign.data.formats.saferlhf_v import SAFERLHF_V
from dualign.data.formats.safety_pairs import SAFETY_PAIRS
from dualign.data.formats.scored_pairs import SCORED_PAIRS
from dualign.data.formats.source import local_file
from dualign.data.formats.trl_plain import TRL_PLAIN_IMPLICIT
from dualign.data.formats.turns import ATTACHED, check_attached, with_system
from dualign.data.preferences import Fault, PreferenceFile, PreferenceRow
from dualign.data.prompts import column_text
from dualign.data.rows import TEXTUAL
from dualign.data.sources.rows import Row, encodable
from dualign.data.sources.table import ending, read_rows
from dualign.errors import DataError, UsageError, nearest

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
