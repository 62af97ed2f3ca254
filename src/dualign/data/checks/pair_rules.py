"""Rules of rows that compare answers, and of rows that say something about the same answers."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

from dualign.data.checks.context import Context
from dualign.data.preferences import Fault, PreferenceRow

Reply = tuple[str, str]
"""Id of a prompt and the text of an answer to it."""


def compared(rows: Iterable[PreferenceRow]) -> list[PreferenceRow]:
    """Return the rows that hold two answers or more."""
    return [row for row in rows if len(row.answers) > 1]


def identical(row: PreferenceRow) -> bool:
    """Return whether the answers of a row are all the same, but for white space at their ends."""
    return len({answer.text.strip() for answer in row.answers}) == 1


def identical_pairs(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:  # noqa: ARG001
    """Return the rows without two different answers."""
    return [Fault("identical pair", row.line, "the answers are the same") for row in compared(rows) if identical(row)]


def labelled_both_ways(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:  # noqa: ARG001
    """Return all rows of a pair whose rows name different winners."""
    same: dict[Hashable, list[PreferenceRow]] = defaultdict(list)
    for row in compared(rows):
        if not identical(row):
            same[row.prompt.id, frozenset(answer.text for answer in row.answers)].append(row)
    found = []
    for members in same.values():
        kinds = [kind for kind in ("better", "safer") if len(_winners(members, kind)) > 1]
        if kinds:
            what = f"{len(members)} rows hold this pair, with different winners ({' and '.join(kinds)})"
            found += [Fault("pair labelled both ways", row.line, what) for row in members]
    return found


def _winners(rows: Iterable[PreferenceRow], kind: str) -> set[str]:
    chosen = ((row, row.better if kind == "better" else row.safer) for row in rows)
    return {row.answers[place].text for row, place in chosen if place is not None}


def repeated(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:  # noqa: ARG001
    """Return the rows that say the same as an earlier one, whatever the order of their answers."""
    first: dict[Hashable, PreferenceRow] = {}
    later = [row for row in rows if first.setdefault(record(row), row) is not row]
    return [Fault("exact duplicates", row.line, "an earlier row says the same") for row in later]


def record(row: PreferenceRow) -> Hashable:
    """Return what a row says: its prompt, and every answer with its labels and whether it wins."""
    answers = (
        (answer.text, answer.safe, answer.severity, answer.categories, answer.reward, answer.cost, answer.desirable,
         _wins(row.better, place), _wins(row.safer, place))
        for place, answer in enumerate(row.answers)
    )  # fmt: skip
    return row.prompt.text, row.prompt.history, row.split, frozenset(Counter(answers).items())


def _wins(chosen: int | None, place: int) -> bool | None:
    return None if chosen is None else chosen == place


def replies_both_ways(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:  # noqa: ARG001
    """Return the rows with a reply that is the safer one here and the less safe one in another row of the prompt."""
    return _in_dispute("reply labelled both ways", rows, safer_opinions(rows), "the safer answer and the less safe one")


def flags_both_ways(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:  # noqa: ARG001
    """Return the rows with a reply that other rows of the prompt flag differently."""
    return _in_dispute("flag both ways", rows, flag_opinions(rows), "safe and unsafe")


def safer_opinions(rows: Iterable[PreferenceRow]) -> dict[Reply, set[bool]]:
    """Return for every reply that was compared whether it was the safer one, in all rows that say so."""
    opinions: dict[Reply, set[bool]] = defaultdict(set)
    for row in compared(rows):
        if row.safer is not None and not identical(row):
            for place, answer in enumerate(row.answers):
                opinions[row.prompt.id, answer.text].add(place == row.safer)
    return opinions


def flag_opinions(rows: Iterable[PreferenceRow]) -> dict[Reply, set[bool]]:
    """Return for every reply that was flagged all its flags."""
    opinions: dict[Reply, set[bool]] = defaultdict(set)
    for row in rows:
        for answer in row.answers:
            if answer.safe is not None:
                opinions[row.prompt.id, answer.text].add(answer.safe)
    return opinions


def _in_dispute(
    rule: str, rows: Sequence[PreferenceRow], opinions: Mapping[Reply, set[bool]], words: str
) -> list[Fault]:
    found = []
    for row in rows:
        places = [
            number
            for number, answer in enumerate(row.answers, start=1)
            if len(opinions.get((row.prompt.id, answer.text), ())) > 1
        ]
        if places:
            found.append(Fault(rule, row.line, f"answer {places[0]} is {words} in different rows"))
    return found
