"""Which format rows are of, said by their columns; and what to say where they are of none."""

from collections.abc import Iterable, Mapping, Sequence

from dualign.data.formats.chat_forms import like_a_prompt, named_prompt
from dualign.data.formats.faults import PreferenceError, refusal
from dualign.data.formats.rows import Format
from dualign.data.preferences import Fault
from dualign.data.sources import table
from dualign.data.sources.rows import Row
from dualign.errors import UsageError, nearest


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
    return table.renamed(rows, where, columns)


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
