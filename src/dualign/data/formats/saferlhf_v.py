"""SafeRLHF-V: a question to an image, two answers, ids that count from one; the image is not read."""

from dualign.data.formats.cells import Values, position, text
from dualign.data.formats.rows import Format, made
from dualign.data.preferences import Answer, Fault, PreferenceRow
from dualign.records import Prompt

TEXTS = ("question", "response_1", "response_2")
IDS = ("more_helpful_response_id", "safer_response_id")


def read_row(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of one pair; ids 1 and 2 become positions 0 and 1."""
    answers = [Answer(text(values, name)) for name in TEXTS[1:]]
    better, safer = (position(values, name, first=1) for name in IDS)
    return made(line, Prompt(text(values, "question")), answers, better=better, safer=safer)


SAFERLHF_V = Format(
    "saferlhf-v",
    "pairs with the more helpful and the safer answer; images are not read",
    (*TEXTS, *IDS),
    read_row,
    options=("image",),
    texts=TEXTS,
)
