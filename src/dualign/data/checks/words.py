"""A check of preference files in words: for the terminal, and for the report of a run that is trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dualign.data.checks.check import CheckReport


def verdict(report: CheckReport) -> str:
    """Return one sentence: fit for training or not, and how many rows are left."""
    share = report.dropped / report.rows if report.rows else 0.0
    counts = f"{report.kept:,} of {report.rows:,} rows kept, {report.dropped:,} dropped ({share:.1%})"
    if report.errors:
        return f"Refused: {report.errors:,} error{'s' if report.errors > 1 else ''}; {counts}."
    if not report.kept:
        return f"Refused: nothing is left; {counts}."
    if report.chosen:
        counts += f", {report.chosen:,} of them for an answer that is too long"
    if not report.accepted:
        return f"Refused: {counts}, {report.max_drop:.1%} are allowed (--max-drop)."
    return f"Fit for training: {counts}."


def summary(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the statistics as (name, words); what the rows do not say is left out."""
    labels, tokens, same = figures["labels"], figures["tokens"], figures["duplicates"]
    near, splits, harm = figures["near_duplicates"], figures["splits"], figures["categories"]
    clusters = f"{near['prompts']:,} are near-duplicates ({near['clusters']:,} clusters)"
    disputed = (
        f"{same['replies_labelled_both_ways']:,} replies by winner, {same['replies_flagged_both_ways']:,} by flag"
    )
    lines = [
        ("prompts", f"{figures['prompts']:,}; {clusters}"),
        ("rows", f"{same['distinct_rows']:,} distinct, {same['repeated_rows']:,} repeated"),
        ("both ways", f"{same['rows_labelled_both_ways']:,} rows; {disputed}"),
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


def in_words(report: CheckReport) -> dict[str, Any]:
    """Return what the report of a run shows of the check: verdict, rules that fired, statistics."""
    rules = [
        {"rule": one.rule, "severity": one.severity, "count": one.count, "lines": one.rows[:3], "what": one.what}
        for one in report.rules
    ]
    told = [list(line) for line in summary(report.statistics)] if report.statistics["prompts"] else []
    return {
        "files": report.paths,
        "format": report.format,
        "verdict": verdict(report),
        "accepted": report.accepted,
        "rules": rules,
        "summary": told,
    }
