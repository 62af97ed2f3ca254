"""BeaverTails: single answers, each flagged by itself; and how they become groups to compare."""

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
    safe, with the kinds of harm that at least half of them saw. ``safer`` is set where exactly one answer is safe.
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
    return replace(members[0], answers=answers, safer=safe[0] if flagged and len(safe) == 1 else None)


def _settled(judged: Sequence[Answer]) -> Answer:
    """Return one answer for several opinions of it."""
    flags = [answer.safe for answer in judged if answer.safe is not None]
    severities = sorted(answer.severity for answer in judged if answer.severity is not None)
    seen = [category for answer in judged for category in answer.categories]
    return replace(
        judged[0],
        safe=2 * sum(flags) > len(flags) if flags else None,
        severity=severities[len(severities) // 2] if severities else None,
        categories=frozenset(category for category in seen if 2 * seen.count(category) >= len(judged)),
    )
