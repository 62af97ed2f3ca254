"""Anthropic HH-RLHF: two whole transcripts that should differ in the last answer alone."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from os.path import commonprefix
from typing import Any

from dualign.data.formats.chat_forms import PAIR, asked, like_a_prompt
from dualign.data.formats.source import (
    Format,
    RowError,
    Values,
    categories,
    flag,
    given,
    made,
    position,
    score,
    severity,
    text,
)
from dualign.data.formats.turns import Role, compared, prompt_of, turns
from dualign.data.preferences import Answer, Fault, PreferenceRow
from dualign.records import Prompt, Turn

TRANSCRIPT_MARKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
LAST = "\n\nAssistant:"
ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
COLUMNS = ("chosen", "rejected")


def recognise_transcripts(rows: Sequence[Values]) -> bool:
    """Return whether any row holds a transcript, and none a prompt of its own."""
    return not any("prompt" in row for row in rows) and any(_transcript(row.get("chosen")) for row in rows)


def _transcript(value: object) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("Human:") and LAST in value


def transcript_turns(transcript: str) -> list[Turn]:
    """Return the turns of a transcript, whose last one is the answer.

    Turns of one speaker in a row are one turn, joined by a blank line, so that speakers alternate.

    Raises:
        RowError: no Assistant marker, words before the first marker, or a turn of the Human after the answer.
    """
    start = transcript.rfind(LAST)
    if start < 0:
        raise RowError("wrong role", "a transcript has no turn of the Assistant; '\\n\\nAssistant:' marks it")
    answer = transcript[start + len(LAST) :]
    if (after := TRANSCRIPT_MARKER.search(answer)) is not None and after.start():
        raise RowError("wrong role", "a transcript ends with a turn of the Human; the Assistant's is needed")
    opening, *parts = TRANSCRIPT_MARKER.split(transcript[:start])
    if opening.strip():
        raise RowError("wrong role", f"a transcript opens with {opening.strip()[:40]!r}; '\\n\\nHuman:' is needed")
    said = [(ROLES[marker], words.strip()) for marker, words in zip(parts[::2], parts[1::2], strict=True)]
    said.append(("assistant", answer.strip()))
    turns: list[Turn] = []
    for role, words in said:
        if turns and turns[-1].role == role:
            turns[-1] = Turn(role, f"{turns[-1].text}\n\n{words}".strip())
        else:
            turns.append(Turn(role, words))
    return turns


def read_transcripts(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of two transcripts; their common turns are the prompt with its history."""
    chosen, rejected = (transcript_turns(text(values, name)) for name in COLUMNS)
    return compared(line, chosen, rejected)


HH_RLHF = Format(
    "hh-rlhf", "pairs of transcripts, chosen first", COLUMNS, read_transcripts, recognise_transcripts, texts=COLUMNS
)


RATINGS = ("correctness", "coherence", "complexity", "verbosity")
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
    first, *parts = TURN_MARKER.split(said[0].text)
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
        line,
        _helpsteer_prompt(values, "prompt"),
        [Answer(text(values, "response"), reward=score(values, "helpfulness"))],
    )


def read_compared(
    values: Values, line: int, *, prompt: str, names: Sequence[str], strength: str
) -> PreferenceRow | Fault:
    """Return the row of two responses, the better one by the sign of the preference."""
    answers = [Answer(text(values, name)) for name in names]
    return made(line, _helpsteer_prompt(values, prompt), answers, better=_winner(values, strength))


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


def read_implicit(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of two texts whose common words are the prompt.

    The prompt ends at the last space that both texts share, and the answers keep that space: cut inside a word, the
    answers would not open with a token that a model can say. Texts without spaces need a prompt of their own.

    Raises:
        RowError: a column is called as prompts are, and then what both texts open with is none.
    """
    if names := like_a_prompt([values]):
        raise RowError("several prompts", f"{names[0]!r} may be the prompt; map it (prompt={names[0]}) or rename it")
    chosen, rejected = (text(values, name) for name in PAIR)
    if chosen == rejected:
        return Fault("identical pair", line, "chosen and rejected are the same text")
    length = shared_words(chosen, rejected)
    if not length:
        return Fault("no common prompt", line, "chosen and rejected do not open with the same words")
    return made(line, Prompt(chosen[:length]), [Answer(chosen[length:]), Answer(rejected[length:])], better=0)


def shared_words(first: str, second: str) -> int:
    """Return how many characters the two texts share up to the end of their last common whole word."""
    head = commonprefix([first, second])
    whole = head.rstrip()
    if whole != head:
        return len(whole)
    before = whole.rsplit(None, 1)
    return len(before[0]) if len(before) == 2 else 0


TRL_PLAIN_IMPLICIT = Format(
    "trl-plain-implicit",
    "pairs of texts, chosen first; the words that both open with are the prompt",
    PAIR,
    read_implicit,
    either=PAIR,
)


SCORED_TEXTS = ("prompt", "response_0", "response_1")
REWARDS = ("reward_0", "reward_1")
COST = re.compile(r"cost(_\w+?)?_[01]")


def recognise_scored_pair(rows: Sequence[Values]) -> bool:
    """Return whether any row has a cost."""
    return any(COST.fullmatch(name) for row in rows for name in row)


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


def _cost(values: Values, name: str) -> float:
    """Return the one cost of an answer.

    Raises:
        RowError: no finite number, or a list of several: a row has one cost here, and which one is the user's to say.
    """
    value = values.get(name)
    if isinstance(value, list) and len(value) > 1:
        mend = "several costs are not read from a list: give each its columns, cost_NAME_0 and cost_NAME_1"
        raise RowError("score not a number", f"{name} is {given(values, name)}; one finite number is needed ({mend})")
    return score(values, name)


def read_scored_pair(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of one scored pair; which answer is better or safer is left to the scores."""
    stem = _cost_stem(values)
    answers = [
        Answer(
            text(values, f"response_{number}"),
            reward=score(values, f"reward_{number}"),
            cost=_cost(values, f"{stem}_{number}"),
        )
        for number in (0, 1)
    ]
    return made(line, Prompt(text(values, "prompt")), answers)


SCORED_PAIRS = Format(
    "scored-pairs",
    "pairs with rewards and costs",
    (*SCORED_TEXTS, *REWARDS),
    read_scored_pair,
    recognise_scored_pair,
    more=COST,
    texts=SCORED_TEXTS,
)


NEEDS = ("line", "prompt", "answers", "better", "safer", "split")
LINES = 2**62  # no file has more; what is stored fits the column's 64 bits


def to_values(row: PreferenceRow) -> dict[str, Any]:
    """Return the row as nested columns: lists and objects of texts and numbers."""
    return {
        "line": row.line,
        "prompt": {
            "text": row.prompt.text,
            "id": row.prompt.id,
            "columns": [{"name": name, "value": value} for name, value in row.prompt.columns.items()],
            "history": [{"role": turn.role, "text": turn.text} for turn in row.prompt.history],
        },
        "answers": [
            {
                "text": answer.text,
                "safe": answer.safe,
                "severity": answer.severity,
                "categories": sorted(answer.categories),
                "reward": answer.reward,
                "cost": answer.cost,
                "desirable": answer.desirable,
            }
            for answer in row.answers
        ],
        "better": row.better,
        "safer": row.safer,
        "split": row.split,
    }


def read_internal(values: Values, line: int) -> PreferenceRow:
    """Return the row that ``to_values`` took apart; its own line is kept."""
    answers = tuple(_answer(value) for value in _objects(values, "answers"))
    if not answers:
        raise RowError("not a text", "answers is a list of 0; one answer at least is needed")
    own = values.get("line")
    return PreferenceRow(
        own if isinstance(own, int) and not isinstance(own, bool) and 0 < own < LINES else line,
        _internal_prompt(values),
        answers,
        better=_optional_position(values, "better", len(answers)),
        safer=_optional_position(values, "safer", len(answers)),
        split=None if values.get("split") is None else text(values, "split"),
    )


def _optional_position(values: Values, name: str, count: int) -> int | None:
    return None if values.get(name) is None else position(values, name, count=count)


def _internal_prompt(values: Values) -> Prompt:
    parts = values.get("prompt")
    if not isinstance(parts, Mapping):
        raise RowError("not a text", "prompt is no object; text, id, columns and history are needed")
    columns = {text(pair, "name"): text(pair, "value") for pair in _objects(parts, "columns")}
    history = tuple(turns(parts, "history")) if parts.get("history") else ()
    return Prompt(text(parts, "text"), columns, text(parts, "id"), history)


def _answer(value: Values) -> Answer:
    return Answer(
        text(value, "text"),
        safe=None if value.get("safe") is None else flag(value, "safe"),
        severity=severity(value, "severity"),
        categories=categories(value, "categories"),
        reward=None if value.get("reward") is None else score(value, "reward"),
        cost=None if value.get("cost") is None else score(value, "cost"),
        desirable=None if value.get("desirable") is None else flag(value, "desirable"),
    )


def _objects(values: Values, name: str) -> list[Values]:
    value = values.get(name)
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise RowError("not a text", f"{name} is no list of objects")
    return value


INTERNAL = Format("dualign", "rows of this toolkit", NEEDS, read_internal, systems=False)
