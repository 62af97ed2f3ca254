"""PKU processed-hh-rlhf: a context of turns and two answers as objects."""

from dualign.data.formats.cells import Values, given, text
from dualign.data.formats.faults import RowError
from dualign.data.formats.rows import Format, made
from dualign.data.formats.turns import ROLES, Role, prompt_of, turns
from dualign.data.preferences import Answer, Fault, PreferenceRow

SPEAKERS: dict[str, Role] = {**ROLES, "human": "user"}


def _answer(values: Values, name: str) -> Answer:
    value = values.get(name)
    if not isinstance(value, dict):
        rule = "not a text" if name in values else "missing column"
        raise RowError(rule, f'{name} is {given(values, name)}; an object {{"text": ...}} is needed')
    return Answer(text({f"the text of {name}": value.get("text")}, f"the text of {name}"))


def read_row(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of one context and its two answers."""
    answers = [_answer(values, name) for name in ("chosen", "rejected")]
    prompt = prompt_of(turns(values, "context", text_key="text", roles=SPEAKERS))
    return made(line, prompt, answers, better=0)


PKU_PROCESSED_HH = Format(
    "pku-processed-hh", "pairs after a context of turns, chosen first", ("context", "chosen", "rejected"), read_row
)
