"""PKU-SafeRLHF since August 2024: as before, with kinds of harm and their severity for each answer."""

from collections.abc import Sequence

from dualign.data.formats.cells import Values, categories, flag, position, severity, text
from dualign.data.formats.pku_saferlhf_v0 import NEEDS, TEXTS
from dualign.data.formats.rows import Format, made
from dualign.data.preferences import Answer, Fault, PreferenceRow
from dualign.records import Prompt

HARM = tuple(f"response_{k}_{what}" for k in (0, 1) for what in ("harm_category", "severity_level"))
HASHES = ("response_0_sha256", "response_1_sha256")


def recognise(rows: Sequence[Values]) -> bool:
    """Return whether any row says something of the kind or severity of harm."""
    return any(name in row for row in rows for name in HARM)


def _answer(values: Values, number: int) -> Answer:
    return Answer(
        text(values, f"response_{number}"),
        safe=flag(values, f"is_response_{number}_safe"),
        severity=severity(values, f"response_{number}_severity_level"),
        categories=categories(values, f"response_{number}_harm_category"),
    )


def read_row(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of one pair with its labels, kinds of harm and severities."""
    answers = [_answer(values, number) for number in (0, 1)]
    better, safer = position(values, "better_response_id"), position(values, "safer_response_id")
    return made(line, Prompt(text(values, "prompt")), answers, better=better, safer=safer)


PKU_SAFERLHF = Format(
    "pku-saferlhf",
    "pairs with safety flags, kinds of harm and severity",
    NEEDS,
    read_row,
    recognise,
    options=(*HARM, *HASHES),
    texts=(*TEXTS, *HASHES),
)
