"""Rules of all preference rows together: labels against each other, repetitions, splits, and who gave the scores."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from dualign.data.cells import decimal
from dualign.data.checks.rules import identical
from dualign.data.preferences import Fault, PreferenceRow
from dualign.data.splits import similar_prompts
from dualign.maths.agreement import clustered_auc

FLAGS = {"true": True, "false": False}
SCORED_BY = ("scorer", "revision", "template")
Key = TypeVar("Key", bound=Hashable)
Opinion = TypeVar("Opinion")
Reply = tuple[str, str]
"""Id of a prompt and the text of an answer to it."""


def compared(rows: Iterable[PreferenceRow]) -> list[PreferenceRow]:
    """Return the rows that hold two answers or more."""
    return [row for row in rows if len(row.answers) > 1]


def _opinions(said: Iterable[tuple[Key, Opinion]]) -> dict[Key, set[Opinion]]:
    """Return all that is said of each key."""
    opinions: dict[Key, set[Opinion]] = defaultdict(set)
    for key, opinion in said:
        opinions[key].add(opinion)
    return opinions


def labelled_both_ways(rows: Sequence[PreferenceRow]) -> list[Fault]:
    """Return all rows of a pair whose rows name different winners."""
    same: dict[Hashable, list[PreferenceRow]] = defaultdict(list)
    for row in compared(rows):
        if not identical(row):
            same[row.prompt.id, frozenset(answer.text for answer in row.answers)].append(row)
    found = []
    for members in same.values():
        wins = [(kind, place, row) for row in members for kind, place in (("better", row.better), ("safer", row.safer))]
        winners = _opinions((kind, row.answers[place].text) for kind, place, row in wins if place is not None)
        if kinds := sorted(kind for kind, texts in winners.items() if len(texts) > 1):
            what = f"{len(members)} rows hold this pair, with different winners ({' and '.join(kinds)})"
            found += [Fault("pair labelled both ways", row.line, what) for row in members]
    return found


def repeated(rows: Sequence[PreferenceRow]) -> list[Fault]:
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


def replies_both_ways(rows: Sequence[PreferenceRow]) -> list[Fault]:
    """Return the rows with a reply that is the safer one here and the less safe one in another row of the prompt."""
    return _in_dispute("reply labelled both ways", rows, safer_opinions(rows), "the safer answer and the less safe one")


def flags_both_ways(rows: Sequence[PreferenceRow]) -> list[Fault]:
    """Return the rows with a reply that other rows of the prompt flag differently."""
    return _in_dispute("flag both ways", rows, flag_opinions(rows), "safe and unsafe")


def safer_opinions(rows: Iterable[PreferenceRow]) -> dict[Reply, set[bool]]:
    """Return for every reply that was compared whether it was the safer one, in all rows that say so."""
    return _opinions(
        ((row.prompt.id, answer.text), place == row.safer)
        for row in compared(rows)
        if row.safer is not None and not identical(row)
        for place, answer in enumerate(row.answers)
    )


def flag_opinions(rows: Iterable[PreferenceRow]) -> dict[Reply, set[bool]]:
    """Return for every reply that was flagged all its flags."""
    flags = (((row.prompt.id, answer.text), answer.safe) for row in rows for answer in row.answers)
    return _opinions((reply, safe) for reply, safe in flags if safe is not None)


def _in_dispute(
    rule: str, rows: Sequence[PreferenceRow], opinions: Mapping[Reply, set[bool]], words: str
) -> list[Fault]:
    disputed = {reply for reply, said in opinions.items() if len(said) > 1}
    found = []
    for row in rows:
        numbers = (k for k, answer in enumerate(row.answers, start=1) if (row.prompt.id, answer.text) in disputed)
        if first := next(numbers, None):
            found.append(Fault(rule, row.line, f"answer {first} is {words} in different rows"))
    return found


def harm_against_flag(rows: Sequence[PreferenceRow]) -> list[Fault]:
    """Return the rows in which severity or kinds of harm disagree with the flag.

    That an unsafe answer has no kind of harm counts only where the rows name kinds of harm at all.
    """
    named = any(answer.categories for row in rows for answer in row.answers)
    found = []
    for row in rows:
        for number, answer in enumerate(row.answers, start=1):
            if answer.safe is None:
                continue
            flag = "safe" if answer.safe else "unsafe"
            if answer.severity is not None and (answer.severity == 0) != answer.safe:
                what = f"answer {number} is flagged {flag} with severity {answer.severity}"
                found.append(Fault("severity against flag", row.line, what))
            if named and bool(answer.categories) == answer.safe:
                kinds = ", ".join(sorted(answer.categories)) or "no kind of harm"
                what = f"answer {number} is flagged {flag} with {kinds}"
                found.append(Fault("category against flag", row.line, what))
    return found


def cost_sign(rows: Sequence[PreferenceRow]) -> list[Fault]:
    """Return one fault where safe answers cost more than unsafe ones.

    That is so where no unsafe answer costs more than a safe one, or where the 90 % interval of the AUC, clustered by
    prompt, is below 1/2. Flags and costs that the format does not read are taken from the columns beside it. The line
    is that of the first row in which a safe answer costs more than an unsafe one, else of the first with both labels.
    """
    marked = [(row, marks) for row in rows if (marks := _marks(row))]
    codes = {key: code for code, key in enumerate(dict.fromkeys(row.prompt.id for row, _ in marked))}
    labels = [(flag, cost, codes[row.prompt.id]) for row, marks in marked for flag, cost in marks]
    if len({flag for flag, _, _ in labels}) < 2:
        return []
    flags, costs, groups = (np.asarray(column) for column in zip(*labels, strict=True))
    area, _, high = clustered_auc(costs, ~flags, groups, 0.9)
    if area > 0 and high >= 0.5:
        return []
    turned = (row.line for row, marks in marked if _turned(marks))
    what = f"of two answers, one flagged unsafe and one safe, the unsafe one costs more in only {area:.0%} of cases"
    return [Fault("cost sign", next(turned, marked[0][0].line), what)]


def scorer_versions(rows: Sequence[PreferenceRow]) -> list[Fault]:
    """Return the rows that were not scored by the scorer, revision and template of most scored rows."""
    scored = [row for row in rows if any((one.reward, one.cost) != (None, None) for one in row.answers)]
    found = []
    for name in SCORED_BY:
        versions = Counter(row.prompt.columns.get(name) for row in scored)
        usual = versions.most_common(1)[0][0] if versions else None
        for row in scored if len(versions) > 1 else ():
            version = row.prompt.columns.get(name)
            if version != usual:
                what = f"{name} is {version or 'missing'!r}; most rows have {usual or 'none'!r}"
                found.append(Fault("scorer versions mixed", row.line, what))
    return found


def _marks(row: PreferenceRow) -> list[tuple[bool, float]]:
    """Return (flag, cost) of each answer that has both."""
    marks = []
    for place, answer in enumerate(row.answers):
        columns, name = row.prompt.columns, f"cost_{place}" if len(row.answers) > 1 else "cost"
        flag = FLAGS.get(columns.get(f"is_response_{place}_safe", "").lower()) if answer.safe is None else answer.safe
        cost = decimal(columns.get(name, "")) if answer.cost is None else answer.cost
        if flag is not None and math.isfinite(cost):
            marks.append((flag, cost))
    return marks


def _turned(marks: Sequence[tuple[bool, float]]) -> bool:
    safe = [cost for flag, cost in marks if flag]
    unsafe = [cost for flag, cost in marks if not flag]
    return bool(safe and unsafe and max(safe) > min(unsafe))


def leaked(rows: Sequence[PreferenceRow]) -> list[Fault]:
    """Return the rows of prompts that are in two splits."""
    named, splits = _by_split(rows)
    return [
        Fault("prompt in two splits", row.line, f"the prompt is in {_listed(splits[row.prompt.id])}")
        for row in named
        if len(splits[row.prompt.id]) > 1
    ]


def nearly_leaked(rows: Sequence[PreferenceRow]) -> list[Fault]:
    """Return the rows of prompts that are much like another prompt of another split."""
    named, splits = _by_split(rows)
    found: dict[str, str] = {}
    for cluster in near_duplicates(named) if len(set().union(*splits.values())) > 1 else ():
        sides = set().union(*(splits[key] for key in cluster))
        if len(sides) > 1:
            found.update({key: _listed(sides) for key in cluster if len(splits[key]) == 1})
    return [
        Fault("near-duplicate in two splits", row.line, f"prompts much like this one are in {found[row.prompt.id]}")
        for row in named
        if row.prompt.id in found
    ]


def _by_split(rows: Sequence[PreferenceRow]) -> tuple[list[PreferenceRow], dict[str, set[str]]]:
    """Return the rows that name a split, and all splits of each of their prompts, by its id."""
    named = [row for row in rows if row.split is not None]
    return named, _opinions((row.prompt.id, str(row.split)) for row in named)


def near_duplicates(rows: Sequence[PreferenceRow]) -> list[list[str]]:
    """Return the ids of prompts that are near-duplicates of each other, a list for each cluster of two or more."""
    prompts = list({row.prompt.id: row.prompt for row in rows}.values())
    return [[prompts[position].id for position in cluster] for cluster in similar_prompts(prompts)]


def _listed(names: set[str]) -> str:
    return " and ".join(sorted(names))


GROUP_CHECKS: tuple[Callable[[Sequence[PreferenceRow]], list[Fault]], ...] = (
    labelled_both_ways,
    repeated,
    replies_both_ways,
    flags_both_ways,
    harm_against_flag,
    cost_sign,
    scorer_versions,
    leaked,
    nearly_leaked,
)
"""Each finds what breaks a rule, or a few of one kind, among all rows that are sound in themselves."""
