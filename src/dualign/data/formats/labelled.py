"""Formats of answers with labels: flags, severities, kinds of harm, ratings, rewards and costs beside each answer."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from dualign.data.cells import RowError, Values, categories, flag, given, position, score, severity, text
from dualign.data.formats.chat_forms import asked
from dualign.data.preferences import Answer, Format, PreferenceRow, Recognition, any_rows, made
from dualign.data.turns import marked_turns, prompt_of, turns
from dualign.records import Prompt, Turn

LABELS: Mapping[str, Callable[[Values, str], Any]] = {
    "text": text,
    "safe": flag,
    "severity": severity,
    "categories": categories,
    "reward": score,
    "cost": score,
    "desirable": flag,
}
"""How the column of each field of an answer is read."""
Fields = Mapping[str, str]
"""Column by the field of an answer that it holds."""


def read_labelled(  # noqa: PLR0913
    values: Values,
    *,
    prompt: str,
    answers: Sequence[Fields],
    better: str | None = None,
    safer: str | int | None = None,
    first: int = 0,
) -> PreferenceRow:
    """Return the row of answers with their labels.

    ``better``, ``safer``: the column with the number of that answer, or its position; numbers count from ``first``.
    """
    read = [Answer(**{name: LABELS[name](values, column) for name, column in fields.items()}) for fields in answers]
    wins = [position(values, one, first=first) if isinstance(one, str) else one for one in (better, safer)]
    return made(Prompt(text(values, prompt)), read, better=wins[0], safer=wins[1])


def _labelled(  # noqa: PLR0913
    name: str,
    says: str,
    answers: Sequence[Fields],
    *,
    prompt: str = "prompt",
    better: str | None = None,
    safer: str | int | None = None,
    first: int = 0,
    recognise: Recognition = any_rows,
    options: tuple[str, ...] = (),
) -> Format:
    """Return the format of these columns; it needs all of them but the options."""
    texts = (prompt, *(fields["text"] for fields in answers))
    labels = [column for fields in answers for name, column in fields.items() if name != "text"]
    wins = [column for column in (better, safer) if isinstance(column, str)]
    return Format(
        name,
        says,
        tuple(column for column in (*texts, *labels, *wins) if column not in options),
        partial(read_labelled, prompt=prompt, answers=answers, better=better, safer=safer, first=first),
        recognise,
        options=options,
        texts=(*texts, *(name for name in options if name.endswith("sha256"))),
    )


COST = re.compile(r"cost(_\w+?)?_[01]")


def _cost_stem(values: Values) -> str:
    """Return what the row's cost columns are called before their number.

    Raises:
        RowError: there are none, or several costs of which none is called ``cost``.
    """
    stems = sorted({name[:-2] for name in values if COST.fullmatch(name)})
    if len(stems) == 1 or "cost" in stems:
        return "cost" if "cost" in stems else stems[0]
    if not stems:
        raise RowError("missing column", "there is no cost; cost_0 and cost_1 are needed")
    mend = f"cost_0={stems[0]}_0,cost_1={stems[0]}_1"
    raise RowError("missing column", f"there are several costs ({', '.join(stems)}); name one by columns: {mend}")


def read_scored_pair(values: Values) -> PreferenceRow:
    """Return the row of one scored pair; which answer is better or safer is left to the scores."""
    stem = _cost_stem(values)
    for name in (f"{stem}_0", f"{stem}_1"):
        if isinstance(costs := values.get(name), list) and len(costs) > 1:  # which of them is the user's to say
            mend = "several costs are not read from a list: give each its columns, cost_NAME_0 and cost_NAME_1"
            what = f"{name} is {given(values, name)}; one finite number is needed ({mend})"
            raise RowError("score not a number", what)
    sides = [{"text": f"response_{k}", "reward": f"reward_{k}", "cost": f"{stem}_{k}"} for k in (0, 1)]
    return read_labelled(values, prompt="prompt", answers=sides)


STRONGEST = 3
TURN_MARKER = re.compile(r"\n*<extra_id_1>(User|Assistant)\s*")
"""What stands between the turns of a prompt of several."""


def _helpsteer_prompt(values: Values, name: str) -> Prompt:
    """Return the prompt of a column: messages, or a text in which markers may part the turns.

    Raises:
        RowError: neither, or turns that do not alternate.
    """
    said = asked(values, name)
    if len(said) > 1 or not TURN_MARKER.search(said[0].text):
        return prompt_of(said)
    opening, later = marked_turns(said[0].text, TURN_MARKER)
    return prompt_of([Turn("user", opening), *later] if opening.strip() else later)


def read_rated(values: Values) -> PreferenceRow:
    """Return the row of one answer; its helpfulness is its reward."""
    prompt = _helpsteer_prompt(values, "prompt")
    return made(prompt, [Answer(text(values, "response"), reward=score(values, "helpfulness"))])


def read_compared(values: Values, *, prompt: str, names: Sequence[str], strength: str) -> PreferenceRow:
    """Return the row of two responses, the better one by the sign of the preference; at 0 neither is.

    Raises:
        RowError: no whole number from -3 to 3.
    """
    answers = [Answer(text(values, name)) for name in names]
    asked_for, preference = _helpsteer_prompt(values, prompt), score(values, strength)
    if preference != int(preference) or abs(preference) > STRONGEST:
        needed = f"a whole number from -{STRONGEST} to {STRONGEST} is needed"
        raise RowError("id out of range", f"{strength} is {preference:g}; {needed}")
    return made(asked_for, answers, better=None if preference == 0 else int(preference > 0))


def _compared(name: str, prompt: str, names: tuple[str, str], strength: str, *more: str) -> Format:
    says = "pairs of responses with the strength of the preference, negative: the first is better"
    reading = partial(read_compared, prompt=prompt, names=names, strength=strength)
    return Format(name, says, (prompt, *names, strength), reading, options=more, texts=names, either=(prompt,))


LINES = 2**62  # no file has more; what is stored fits the column's 64 bits


def read_internal(values: Values) -> PreferenceRow:
    """Return the row whose nested columns these are; its own line is kept."""
    answers = [_internal_answer(value) for value in _objects(values, "answers")]
    if not answers:
        raise RowError("not a text", "answers is a list of 0; one answer at least is needed")
    own = values.get("line")
    prompt = _internal_prompt(values)
    better, safer = (
        None if values.get(name) is None else position(values, name, count=len(answers)) for name in ("better", "safer")
    )
    split = None if values.get("split") is None else text(values, "split")
    line = own if isinstance(own, int) and not isinstance(own, bool) and 0 < own < LINES else 0
    return PreferenceRow(line, prompt, tuple(answers), better, safer, split)


def _internal_prompt(values: Values) -> Prompt:
    parts = values.get("prompt")
    if not isinstance(parts, Mapping):
        raise RowError("not a text", "prompt is no object; text, id, columns and history are needed")
    columns = {text(pair, "name"): text(pair, "value") for pair in _objects(parts, "columns")}
    history = tuple(turns(parts, "history")) if parts.get("history") else ()
    return Prompt(text(parts, "text"), columns, text(parts, "id"), history)


def _internal_answer(values: Values) -> Answer:
    return Answer(**{
        name: read(values, name)
        for name, read in LABELS.items()
        if name in ("text", "categories") or values.get(name) is not None
    })  # fmt: skip


def _objects(values: Values, name: str) -> list[Values]:
    value = values.get(name)
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise RowError("not a text", f"{name} is no list of objects")
    return value


def _any_of(*names: str) -> Recognition:
    return lambda rows: any(name in row for row in rows for name in names)


def _refused(_values: Values) -> PreferenceRow:
    raise RowError("refused format", "rows of this format are not read")


HARM = tuple(f"response_{k}_{what}" for k in (0, 1) for what in ("harm_category", "severity_level"))
FLAGGED = [{"text": f"response_{k}", "safe": f"is_response_{k}_safe"} for k in (0, 1)]
JUDGED_HARM = [
    {**fields, "severity": f"response_{k}_severity_level", "categories": f"response_{k}_harm_category"}
    for k, fields in enumerate(FLAGGED)
]
BETTER, SAFER = "better_response_id", "safer_response_id"
SCORED_TEXTS = ("prompt", "response_0", "response_1")
ANSWERS = ("response", "response_0", "response_1", "chosen", "rejected", "safer", "less_safe")
LABELLED = (
    Format(
        "dualign", "rows of this toolkit", ("line", "prompt", "answers", "better", "safer", "split"), read_internal,
        systems=False,
    ),
    _labelled(
        "pku-saferlhf", "pairs with safety flags, kinds of harm and severity", JUDGED_HARM,
        better=BETTER, safer=SAFER,
        recognise=_any_of(*HARM), options=(*HARM, "response_0_sha256", "response_1_sha256"),
    ),
    _labelled("pku-saferlhf-v0", "pairs with safety flags", FLAGGED, better=BETTER, safer=SAFER),
    _labelled(
        "saferlhf-v", "pairs with the more helpful and the safer answer; images are not read",
        [{"text": "response_1"}, {"text": "response_2"}], prompt="question",
        better="more_helpful_response_id", safer=SAFER, first=1, options=("image",),
    ),
    Format(
        "scored-pairs", "pairs with rewards and costs", (*SCORED_TEXTS, "reward_0", "reward_1"), read_scored_pair,
        lambda rows: any(COST.fullmatch(name) for row in rows for name in row),
        more=("cost_[01]", "cost_*_[01]"), texts=SCORED_TEXTS,
    ),
    Format(
        "pku-saferlhf-qa", "single answers", ("prompt", "response", "severity_category", "safety_category"), _refused,
        refusal="holds single answers (PKU-SafeRLHF-QA); use its sibling with pairs, PKU-SafeRLHF",
    ),
    Format(
        "helpsteer2", "single answers, rated; helpfulness is the reward", ("prompt", "response", "helpfulness"),
        read_rated,
        options=("correctness", "coherence", "complexity", "verbosity"), texts=("response",), either=("prompt",),
    ),
    _compared(
        "helpsteer2-preference", "prompt", ("response_1", "response_2"), "preference_strength",
        "preference_statement", "preference_elaboration", "three_most_similar_preferences",
        "all_preferences_unprocessed",
    ),
    _compared("helpsteer3", "context", ("response1", "response2"), "overall_preference", "individual_preference"),
    _labelled(
        "beavertails", "single answers with safety flags",
        [{"text": "response", "safe": "is_safe", "categories": "category"}],
    ),
    _labelled("safety-pairs", "pairs, the safer answer first", [{"text": "safer"}, {"text": "less_safe"}], safer=0),
)  # fmt: skip
BEAVERTAILS_EVALUATION = Format(
    "beavertails-evaluation",
    "prompts",
    ("prompt", "category"),
    _refused,
    # a file of answers with a column missing is told about that column
    lambda rows: not _any_of(*ANSWERS)(rows),
    refusal="holds prompts without answers (BeaverTails-Evaluation); read it as prompts (data.prompts.read_prompts)",
)
