"""BeaverTails: single answers, each flagged by itself; and how single answers of any format become groups."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from dualign.data.formats.cells import Values, categories, flag, text
from dualign.data.formats.rows import Format, made
from dualign.data.preferences import Answer, Fault, PreferenceRow
from dualign.records import Prompt

TEXTS = ("prompt", "response")


def read_row(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of one answer with its flag and its kinds of harm."""
    answer = Answer(text(values, "response"), safe=flag(values, "is_safe"), categories=categories(values, "category"))
    return made(line, Prompt(text(values, "prompt")), [answer])


BEAVERTAILS = Format(
    "beavertails", "single answers with safety flags", (*TEXTS, "category", "is_safe"), read_row, texts=TEXTS
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
