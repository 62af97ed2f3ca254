"""PKU processed-hh-rlhf: a context of turns and two answers as objects."""

from collections.abc import Sequence

from dualign.data.formats.cells import Values, given, text, unpacked
from dualign.data.formats.faults import RowError
from dualign.data.formats.rows import Format, made
from dualign.data.formats.turns import prompt_of, turns
from dualign.data.preferences import Answer, Fault, PreferenceRow


def recognise(rows: Sequence[Values]) -> bool:
    """Return whether any answer is an object with a text and no role."""
    return any(
        isinstance(said := unpacked(row, "chosen"), dict) and "text" in said and "role" not in said for row in rows
    )


def _answer(values: Values, name: str) -> Answer:
    value = values.get(name)
    if not isinstance(value, dict):
        raise RowError("not a text", f'{name} is {given(values, name)}; an object {{"text": ...}} is needed')
    return Answer(text({f"the text of {name}": value.get("text")}, f"the text of {name}"))


def read_row(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of one context and its two answers."""
    answers = [_answer(values, name) for name in ("chosen", "rejected")]
    prompt = prompt_of(turns(values, "context"))
    return made(line, prompt, answers, better=0)


PKU_PROCESSED_HH = Format(
    "pku-processed-hh",
    "pairs after a context of turns, chosen first",
    ("context", "chosen", "rejected"),
    read_row,
    recognise,
)
