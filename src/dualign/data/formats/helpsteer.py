"""HelpSteer: answers rated one by one (HelpSteer, HelpSteer2), or two of them compared (HelpSteer2 and 3 preference).

The strength of a preference counts from -3 (the first response is much better) to 3 (the second one is); 0: a tie.
"""

import re
from collections.abc import Sequence
from functools import partial

from dualign.data.formats.cells import Values, score, text
from dualign.data.formats.chat_forms import asked
from dualign.data.formats.faults import RowError
from dualign.data.formats.rows import Format, made
from dualign.data.formats.turns import prompt_of
from dualign.data.preferences import Answer, Fault, PreferenceRow
from dualign.records import Prompt, Turn

RATINGS = ("correctness", "coherence", "complexity", "verbosity")
STRONGEST = 3
MARKER = re.compile(r"\n*<extra_id_1>(User|Assistant)\s*")
"""What stands between the turns of a prompt of several."""


def _prompt(values: Values, name: str) -> Prompt:
    """Return the prompt of a column: messages, or a text in which markers may part the turns.

    Raises:
        RowError: neither, or turns that do not alternate.
    """
    said = asked(values, name)
    if len(said) > 1 or not MARKER.search(said[0].text):
        return prompt_of(said)
    first, *parts = MARKER.split(said[0].text)
    later = [
        Turn("user" if who == "User" else "assistant", words)
        for who, words in zip(parts[::2], parts[1::2], strict=True)
    ]
    return prompt_of([Turn("user", first), *later] if first.strip() else later)


def _winner(values: Values, name: str) -> int | None:
    """Return the position of the response that is preferred; none: a tie.

    Raises:
        RowError: no whole number from -3 to 3.
    """
    strength = score(values, name)
    if strength != int(strength) or abs(strength) > STRONGEST:
        raise RowError("id out of range", f"{name} is {strength:g}; a whole number from -3 to 3 is needed")
    return None if strength == 0 else int(strength > 0)


def read_rated(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of one answer; its helpfulness is its reward."""
    return made(
        line, _prompt(values, "prompt"), [Answer(text(values, "response"), reward=score(values, "helpfulness"))]
    )


def read_compared(
    values: Values, line: int, *, prompt: str, names: Sequence[str], strength: str
) -> PreferenceRow | Fault:
    """Return the row of two responses, the better one by the sign of the preference."""
    answers = [Answer(text(values, name)) for name in names]
    return made(line, _prompt(values, prompt), answers, better=_winner(values, strength))


def _compared(name: str, prompt: str, names: tuple[str, str], strength: str, *more: str) -> Format:
    return Format(
        name,
        "pairs of responses with the strength of the preference, negative: the first is better",
        (prompt, *names, strength),
        partial(read_compared, prompt=prompt, names=names, strength=strength),
        options=more,
        texts=names,
        either=(prompt,),
    )


HELPSTEER = (
    Format(
        "helpsteer2",
        "single answers, rated; helpfulness is the reward",
        ("prompt", "response", "helpfulness"),
        read_rated,
        options=RATINGS,
        texts=("response",),
        either=("prompt",),
    ),
    _compared(
        "helpsteer2-preference", "prompt", ("response_1", "response_2"), "preference_strength",
        "preference_statement", "preference_elaboration", "three_most_similar_preferences",
        "all_preferences_unprocessed",
    ),
    _compared("helpsteer3", "context", ("response1", "response2"), "overall_preference", "individual_preference"),
)  # fmt: skip
