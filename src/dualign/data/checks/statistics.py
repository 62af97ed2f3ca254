"""What preference data are made of: shares of labels, lengths, repetitions, splits. Every figure is finite or none."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dualign.data.checks.group_rules import (
    compared,
    flag_opinions,
    labelled_both_ways,
    leaked,
    near_duplicates,
    record,
    safer_opinions,
)
from dualign.data.checks.reading import Context
from dualign.data.checks.rules import contradiction
from dualign.data.preferences import PreferenceRow, grouped
from dualign.data.splits import SIMILARITY

QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}


def statistics(rows: Sequence[PreferenceRow], context: Context) -> dict[str, Any]:
    """Return the figures of these rows as one JSON object; shares are of the rows that have the labels."""
    near = near_duplicates(rows)
    kinds = Counter(kind for row in rows for answer in row.answers for kind in sorted(answer.categories))
    return {
        "prompts": len({row.prompt.id for row in rows}),
        "answers_per_row": _quantiles(len(row.answers) for row in rows),
        "labels": labels(rows),
        "categories": dict(kinds.most_common()),
        "severity": _counted(answer.severity for row in rows for answer in row.answers),
        "tokens": lengths(rows, context),
        "duplicates": duplicates(rows),
        "near_duplicates": {"similarity": SIMILARITY, "clusters": len(near), "prompts": sum(map(len, near))},
        "splits": splits(rows),
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


def duplicates(rows: Sequence[PreferenceRow]) -> dict[str, Any]:
    """Return how many rows are distinct, and how many pairs and replies are labelled in two ways."""
    distinct = len({record(row) for row in rows})
    return {
        "distinct_rows": distinct,
        "repeated_rows": len(rows) - distinct,
        "rows_labelled_both_ways": len(labelled_both_ways(rows)),
        "replies_labelled_both_ways": _disputed(safer_opinions(rows)),
        "replies_flagged_both_ways": _disputed(flag_opinions(rows)),
    }


def splits(rows: Sequence[PreferenceRow]) -> dict[str, Any]:
    """Return rows and prompts of each split, and the prompts that are in two of them."""
    named = [row for row in rows if row.split is not None]
    counts = _counted(row.split for row in named)
    prompts = {name: len({row.prompt.id for row in named if row.split == name}) for name in counts}
    inside = {row.line: row.prompt.id for row in named}
    leaking = {inside[fault.line] for fault in leaked(named)}
    return {"rows": counts, "prompts": prompts, "leaking_prompts": len(leaking)}


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


def summary(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the statistics as (name, words); what the rows do not say is left out."""
    labels, tokens, same = figures["labels"], figures["tokens"], figures["duplicates"]
    near, splits, harm = figures["near_duplicates"], figures["splits"], figures["categories"]
    clusters = f"{near['prompts']:,} are near-duplicates ({near['clusters']:,} clusters)"
    both = f"{same['replies_labelled_both_ways']:,} replies by winner, {same['replies_flagged_both_ways']:,} by flag"
    lines = [
        ("prompts", f"{figures['prompts']:,}; {clusters}"),
        ("rows", f"{same['distinct_rows']:,} distinct, {same['repeated_rows']:,} repeated"),
        ("both ways", f"{same['rows_labelled_both_ways']:,} rows; {both}"),
    ]
    if labels["flagged_rows"]:
        shares = ", ".join(f"{kind} {labels[kind]:.1%}" for kind in ("safe", "mixed", "unsafe"))
        contrary = f"{labels['contradictory']:,} contradictory"
        lines.append(("flags", f"{shares} of {labels['flagged_rows']:,} rows; {contrary}"))
    if labels["judged_answers"]:
        share = f"{labels['desirable']:.1%}"
        lines.append(("labels", f"{share} of {labels['judged_answers']:,} answers are labelled true (desirable)"))
    if labels["better_and_safer_agree"] is not None:
        share = f"{labels['better_and_safer_agree']:.1%}"
        lines.append(("winners", f"the more helpful answer is the safer one in {share} of rows"))
    if harm:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in list(harm.items())[:5])
        lines.append(("harm", kinds + (", ..." if len(harm) > 5 else "")))
    if tokens["prompt"]:
        lines += [(f"{side} tokens", _range(tokens[side])) for side in ("prompt", "answer")]
        lines.append(("cut off", _cut(tokens)))
    if splits["rows"]:
        sides = ", ".join(f"{name} {count:,}" for name, count in splits["rows"].items())
        lines.append(("splits", f"{sides} rows; {splits['leaking_prompts']:,} prompts in two of them"))
    return lines


def _cut(tokens: Mapping[str, Any]) -> str:
    """Return the share of rows whose answers lose their ends, where, and how many are left out instead."""
    where = f"at {tokens['max_length']:,} tokens"
    if tokens["max_answer"] < tokens["max_length"]:
        where = f"at {tokens['max_answer']:,} tokens an answer"
    long = tokens["too_long_rows"] - tokens["truncated_rows"]
    instead = f"; {long:,} rows have a longer answer, which is left out" if long else ""
    return f"{tokens['truncated_share']:.1%} of rows {where}, counted as {tokens['measure']}{instead}"


def _range(quantiles: Mapping[str, float]) -> str:
    return f"median {quantiles['median']:,.0f}, 95 % {quantiles['q95']:,.0f}, at most {quantiles['max']:,.0f}"
