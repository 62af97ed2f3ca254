"""BeaverTails-Evaluation: prompts alone; refused here, read where prompts are."""

from collections.abc import Sequence

from dualign.data.formats.cells import Values
from dualign.data.formats.rows import Format, refused

ANSWERS = ("response", "response_0", "response_1", "chosen", "rejected", "safer", "less_safe")


def recognise(rows: Sequence[Values]) -> bool:
    """Return whether no row has an answer; a file of answers with a column missing is told about that column."""
    return not any(name in row for row in rows for name in ANSWERS)


BEAVERTAILS_EVALUATION = Format(
    "beavertails-evaluation",
    "prompts",
    ("prompt", "category"),
    refused,
    recognise,
    texts=("prompt", "category"),
    refusal="holds prompts without answers (BeaverTails-Evaluation); read it as prompts (data.prompts.read_prompts)",
)
