"""What preference data are made of: shares of labels, lengths, repetitions, splits. Every figure is finite or none."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dualign.data.checks.label_rules import contradiction, leaked, near_duplicates
from dualign.data.checks.reading import Context
from dualign.data.checks.row_rules import compared, flag_opinions, labelled_both_ways, record, safer_opinions
from dualign.data.formats.safety import grouped
from dualign.data.preferences import PreferenceRow
from dualign.data.similar import SIMILARITY

QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}


def statistics(rows: Sequence[PreferenceRow], context: Context) -> dict[str, Any]:
    """Return the figures of these rows as one JSON object; shares are of the rows that have the labels."""
    return {
        "prompts": len({row.prompt.id for row in rows}),
        "answers_per_row": _quantiles(len(row.answers) for row in rows),
        "labels": labels(rows),
        "categories": dict(
            Counter(kind for row in rows for answer in row.answers for kind in sorted(answer.categories)).most_common()
        ),
        "severity": _counted(answer.severity for row in rows for answer in row.answers),
        "tokens": lengths(rows, context),
        "duplicates": duplicates(rows, context),
        "near_duplicates": near(rows),
        "splits": splits(rows, context),
    }


def labels(rows: Sequence[PreferenceRow]) -> dict[str, Any]:
    """Return shares of safe, mixed and unsafe rows and of desirable answers, and how often better is safer too.

    Of single answers it is given which is better where another answer to the prompt is labelled or rated worse.
    """
    flagged = [{answer.safe for answer in row.answers} for row in rows]
    kinds = Counter(frozenset(flags) for flags in flagged if flags and None not in flags)
    total = sum(kinds.values())
    judged = [answer.desirable for row in rows for answer in row.answers if answer.desirable is not None]
    both = [row for row in compared(rows) if row.better is not None and row.safer is not None]
    return {
        "flagged_rows": total,
        "safe": _share(kinds[frozenset({True})], total),
        "mixed": _share(kinds[frozenset({True, False})], total),
        "unsafe": _share(kinds[frozenset({False})], total),
        "judged_answers": len(judged),
        "desirable": _share(sum(judged), len(judged)),
        "better_given": sum(row.better is not None for row in grouped(rows)),
        "safer_given": sum(row.safer is not None for row in rows),
        "better_and_safer_agree": _share(sum(row.better == row.safer for row in both), len(both)),
        "contradictory": sum(contradiction(row) is not None for row in rows),
    }


def lengths(rows: Sequence[PreferenceRow], context: Context) -> dict[str, Any]:
    """Return quantiles of lengths in tokens, and what the maximal length cuts off."""
    measured, limits = [context.of(row) for row in rows], context.limits
    long = sum(max(one.answers, default=0) > limits.room(one.prompt) for one in measured)
    cut = 0 if limits.drops_long else long
    return {
        "measure": context.measure.name,
        "max_length": limits.together,
        "max_prompt": limits.longest_prompt,
        "max_answer": limits.together if limits.answer is None else limits.answer,
        "prompt": _quantiles(one.prompt for one in measured),
        "answer": _quantiles(tokens for one in measured for tokens in one.answers),
        "truncated_rows": cut,
        "truncated_share": _share(cut, len(rows)),
        "too_long_rows": long,
    }


def duplicates(rows: Sequence[PreferenceRow], context: Context) -> dict[str, Any]:
    """Return how many rows are distinct, and how many pairs and replies are labelled in two ways."""
    distinct = len({record(row) for row in rows})
    return {
        "distinct_rows": distinct,
        "repeated_rows": len(rows) - distinct,
        "rows_labelled_both_ways": len(labelled_both_ways(rows, context)),
        "replies_labelled_both_ways": _disputed(safer_opinions(rows)),
        "replies_flagged_both_ways": _disputed(flag_opinions(rows)),
    }


def near(rows: Sequence[PreferenceRow]) -> dict[str, Any]:
    """Return how many prompts are near-duplicates of another, and in how many clusters."""
    clusters = near_duplicates(rows)
    return {"similarity": SIMILARITY, "clusters": len(clusters), "prompts": sum(map(len, clusters))}


def splits(rows: Sequence[PreferenceRow], context: Context) -> dict[str, Any]:
    """Return rows and prompts of each split, and the prompts that are in two of them."""
    named = [row for row in rows if row.split is not None]
    counts = _counted(row.split for row in named)
    prompts = {name: len({row.prompt.id for row in named if row.split == name}) for name in counts}
    inside = {row.line: row.prompt.id for row in named}
    return {
        "rows": counts,
        "prompts": prompts,
        "leaking_prompts": len({inside[fault.line] for fault in leaked(named, context)}),
    }


def _counted(values: Iterable[object]) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(v for v in values if v is not None).items(), key=str)}


def _disputed(opinions: Mapping[Any, set[bool]]) -> int:
    return sum(len(said) > 1 for said in opinions.values())


def _share(count: int, total: int) -> float | None:
    return count / total if total else None


def _quantiles(values: Iterable[int]) -> dict[str, float] | None:
    numbers = np.fromiter(values, dtype=np.float64)
    if not numbers.size:
        return None
    found = np.quantile(numbers, list(QUANTILES.values()))
    return {**dict(zip(QUANTILES, found.tolist(), strict=True)), "mean": float(numbers.mean())}
