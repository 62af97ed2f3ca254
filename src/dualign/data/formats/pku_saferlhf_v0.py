"""PKU-SafeRLHF up to mid-2024: two answers, a safety flag for each, the more helpful and the safer one."""

from dualign.data.formats.cells import Values, flag, position, text
from dualign.data.formats.rows import Format, made
from dualign.data.preferences import Answer, Fault, PreferenceRow
from dualign.records import Prompt

TEXTS = ("prompt", "response_0", "response_1")
NEEDS = (*TEXTS, "is_response_0_safe", "is_response_1_safe", "better_response_id", "safer_response_id")


def read_row(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of one pair with its four labels."""
    answers = [Answer(text(values, f"response_{k}"), safe=flag(values, f"is_response_{k}_safe")) for k in (0, 1)]
    better, safer = position(values, "better_response_id"), position(values, "safer_response_id")
    return made(line, Prompt(text(values, "prompt")), answers, better=better, safer=safer)


PKU_SAFERLHF_V0 = Format("pku-saferlhf-v0", "pairs with safety flags", NEEDS, read_row, texts=TEXTS)
