"""PKU processed-hh-rlhf: a context of turns and two answers as objects."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from dualign.data.formats.source import (
    Format,
    RowError,
    Values,
    categories,
    flag,
    given,
    made,
    position,
    refused,
    severity,
    text,
    unpacked,
)
from dualign.data.formats.turns import prompt_of, turns
from dualign.data.preferences import Answer, Fault, PreferenceRow
from dualign.records import Prompt


def recognise_processed_hh(rows: Sequence[Values]) -> bool:
    """Return whether any answer is an object with a text and no role."""
    return any(
        isinstance(said := unpacked(row, "chosen"), dict) and "text" in said and "role" not in said for row in rows
    )


def _processed_hh_answer(values: Values, name: str) -> Answer:
    value = values.get(name)
    if not isinstance(value, dict):
        raise RowError("not a text", f'{name} is {given(values, name)}; an object {{"text": ...}} is needed')
    return Answer(text({f"the text of {name}": value.get("text")}, f"the text of {name}"))


def read_processed_hh(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of one context and its two answers."""
    answers = [_processed_hh_answer(values, name) for name in ("chosen", "rejected")]
    prompt = prompt_of(turns(values, "context"))
    return made(line, prompt, answers, better=0)


PKU_PROCESSED_HH = Format(
    "pku-processed-hh",
    "pairs after a context of turns, chosen first",
    ("context", "chosen", "rejected"),
    read_processed_hh,
    recognise_processed_hh,
)


SAFERLHF_TEXTS = ("prompt", "response_0", "response_1")
NEEDS = (*SAFERLHF_TEXTS, "is_response_0_safe", "is_response_1_safe", "better_response_id", "safer_response_id")


def read_saferlhf_v0(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of one pair with its four labels."""
    answers = [Answer(text(values, f"response_{k}"), safe=flag(values, f"is_response_{k}_safe")) for k in (0, 1)]
    better, safer = position(values, "better_response_id"), position(values, "safer_response_id")
    return made(line, Prompt(text(values, "prompt")), answers, better=better, safer=safer)


PKU_SAFERLHF_V0 = Format("pku-saferlhf-v0", "pairs with safety flags", NEEDS, read_saferlhf_v0, texts=SAFERLHF_TEXTS)


HARM = tuple(f"response_{k}_{what}" for k in (0, 1) for what in ("harm_category", "severity_level"))
HASHES = ("response_0_sha256", "response_1_sha256")


def recognise_saferlhf(rows: Sequence[Values]) -> bool:
    """Return whether any row says something of the kind or severity of harm."""
    return any(name in row for row in rows for name in HARM)


def _answer(values: Values, number: int) -> Answer:
    return Answer(
        text(values, f"response_{number}"),
        safe=flag(values, f"is_response_{number}_safe"),
        severity=severity(values, f"response_{number}_severity_level"),
        categories=categories(values, f"response_{number}_harm_category"),
    )


def read_saferlhf(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of one pair with its labels, kinds of harm and severities."""
    answers = [_answer(values, number) for number in (0, 1)]
    better, safer = position(values, "better_response_id"), position(values, "safer_response_id")
    return made(line, Prompt(text(values, "prompt")), answers, better=better, safer=safer)


PKU_SAFERLHF = Format(
    "pku-saferlhf",
    "pairs with safety flags, kinds of harm and severity",
    NEEDS,
    read_saferlhf,
    recognise_saferlhf,
    options=(*HARM, *HASHES),
    texts=(*SAFERLHF_TEXTS, *HASHES),
)


PKU_SAFERLHF_QA = Format(
    "pku-saferlhf-qa",
    "single answers",
    ("prompt", "response", "severity_category", "safety_category"),
    refused,
    texts=("prompt", "response"),
    refusal="holds single answers (PKU-SafeRLHF-QA); use its sibling with pairs, PKU-SafeRLHF",
)


SAFERLHF_V_TEXTS = ("question", "response_1", "response_2")
IDS = ("more_helpful_response_id", "safer_response_id")


def read_saferlhf_v(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of one pair; ids 1 and 2 become positions 0 and 1."""
    answers = [Answer(text(values, name)) for name in SAFERLHF_V_TEXTS[1:]]
    better, safer = (position(values, name, first=1) for name in IDS)
    return made(line, Prompt(text(values, "question")), answers, better=better, safer=safer)


SAFERLHF_V = Format(
    "saferlhf-v",
    "pairs with the more helpful and the safer answer; images are not read",
    (*SAFERLHF_V_TEXTS, *IDS),
    read_saferlhf_v,
    options=("image",),
    texts=SAFERLHF_V_TEXTS,
)


COLUMNS = ("prompt", "safer", "less_safe")


def read_safety_pair(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of one pair; it says which answer is safer, not whether either is safe."""
    answers = [Answer(text(values, name)) for name in COLUMNS[1:]]
    return made(line, Prompt(text(values, "prompt")), answers, safer=0)


SAFETY_PAIRS = Format("safety-pairs", "pairs, the safer answer first", COLUMNS, read_safety_pair, texts=COLUMNS)


BEAVERTAILS_TEXTS = ("prompt", "response")


def read_beavertails(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of one answer with its flag and its kinds of harm."""
    answer = Answer(text(values, "response"), safe=flag(values, "is_safe"), categories=categories(values, "category"))
    return made(line, Prompt(text(values, "prompt")), [answer])


BEAVERTAILS = Format(
    "beavertails",
    "single answers with safety flags",
    (*BEAVERTAILS_TEXTS, "category", "is_safe"),
    read_beavertails,
    texts=BEAVERTAILS_TEXTS,
)


def grouped(rows: Iterable[PreferenceRow]) -> tuple[PreferenceRow, ...]:
    """Return one row of K >= 2 distinct answers for each prompt of single-answer rows, in order of appearance.

    Our choice: C-DPO (2024) trains on BeaverTails, which has no pairs, without saying how they were formed. Prompts
    are the same where their ids are. An answer that several people flagged counts once, unsafe unless most flagged it
    safe, with the kinds of harm that at least half of them saw; its rewards count by their mean. ``safer`` is set where
    exactly one answer is safe, ``better`` where one alone is desirable (KTO) or has the highest reward (HelpSteer).
    Prompts with a single answer are left out; rows that compare answers already are passed on.
    """
    compared: list[PreferenceRow] = []
    singles: dict[str, list[PreferenceRow]] = {}
    for row in rows:
        (compared if len(row.answers) > 1 else singles.setdefault(row.prompt.id, [])).append(row)
    groups = [_group(members) for members in singles.values()]
    return tuple(sorted(compared + [row for row in groups if len(row.answers) > 1], key=lambda row: row.line))


def _group(members: Sequence[PreferenceRow]) -> PreferenceRow:
    opinions: dict[str, list[Answer]] = {}
    for row in members:
        opinions.setdefault(row.answers[0].text, []).append(row.answers[0])
    answers = tuple(_settled(judged) for judged in opinions.values())
    safe = [position for position, answer in enumerate(answers) if answer.safe]
    flagged = all(answer.safe is not None for answer in answers)
    safer = safe[0] if flagged and len(safe) == 1 else None
    return replace(members[0], answers=answers, safer=safer, better=_better(answers))


def _better(answers: Sequence[Answer]) -> int | None:
    """Return the one answer that is desirable, or that has the highest reward; none where several are, or none is."""
    for merits in ([answer.desirable for answer in answers], [answer.reward for answer in answers]):
        known = [merit for merit in merits if merit is not None]
        if len(known) == len(answers):
            best = [place for place, merit in enumerate(known) if merit == max(known)]
            return best[0] if len(best) == 1 else None
    return None


def _settled(judged: Sequence[Answer]) -> Answer:
    """Return one answer for several opinions of it."""
    severities = sorted(answer.severity for answer in judged if answer.severity is not None)
    rewards = [answer.reward for answer in judged if answer.reward is not None]
    seen = [category for answer in judged for category in answer.categories]
    return replace(
        judged[0],
        safe=_most(answer.safe for answer in judged),
        desirable=_most(answer.desirable for answer in judged),
        reward=sum(rewards) / len(rewards) if rewards else None,
        severity=severities[len(severities) // 2] if severities else None,
        categories=frozenset(category for category in seen if 2 * seen.count(category) >= len(judged)),
    )


def _most(flags: Iterable[bool | None]) -> bool | None:
    """Return whether most of the flags that are given are true; none: none is given."""
    given = [flag for flag in flags if flag is not None]
    return 2 * sum(given) > len(given) if given else None


ANSWERS = ("response", "response_0", "response_1", "chosen", "rejected", "safer", "less_safe")


def recognise_evaluation(rows: Sequence[Values]) -> bool:
    """Return whether no row has an answer; a file of answers with a column missing is told about that column."""
    return not any(name in row for row in rows for name in ANSWERS)


BEAVERTAILS_EVALUATION = Format(
    "beavertails-evaluation",
    "prompts",
    ("prompt", "category"),
    refused,
    recognise_evaluation,
    texts=("prompt", "category"),
    refusal="holds prompts without answers (BeaverTails-Evaluation); read it as prompts (data.prompts.read_prompts)",
)
