"""Safety pairs: a prompt, the safer answer and the less safe one."""

from dualign.data.formats.cells import Values, text
from dualign.data.formats.rows import Format, made
from dualign.data.preferences import Answer, Fault, PreferenceRow
from dualign.records import Prompt

COLUMNS = ("prompt", "safer", "less_safe")


def read_row(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of one pair; it says which answer is safer, not whether either is safe."""
    answers = [Answer(text(values, name)) for name in COLUMNS[1:]]
    return made(line, Prompt(text(values, "prompt")), answers, safer=0)


SAFETY_PAIRS = Format("safety-pairs", "pairs, the safer answer first", COLUMNS, read_row, texts=COLUMNS)
