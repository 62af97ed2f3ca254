"""Rules of splits: no prompt, and nothing much like it, may be on two sides."""

from collections import defaultdict
from collections.abc import Sequence

from dualign.data.checks.context import Context
from dualign.data.checks.near_duplicates import similar_prompts
from dualign.data.preferences import Fault, PreferenceRow


def leaked(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:  # noqa: ARG001
    """Return the rows of prompts that are in two splits."""
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.split is not None:
            splits[row.prompt.id].add(row.split)
    return [
        Fault("prompt in two splits", row.line, f"the prompt is in {_listed(splits[row.prompt.id])}")
        for row in rows
        if row.split is not None and len(splits[row.prompt.id]) > 1
    ]


def nearly_leaked(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:  # noqa: ARG001
    """Return the rows of prompts that are much like another prompt of another split."""
    named = [row for row in rows if row.split is not None]
    if len({row.split for row in named}) < 2:
        return []
    splits: dict[str, set[str]] = defaultdict(set)
    for row in named:
        splits[row.prompt.id].add(str(row.split))
    found: dict[str, str] = {}
    for cluster in near_duplicates(named):
        sides = set().union(*(splits[key] for key in cluster))
        apart = [key for key in cluster if len(splits[key]) == 1]
        if len(sides) > 1:
            found.update({key: _listed(sides) for key in apart})
    return [
        Fault("near-duplicate in two splits", row.line, f"prompts much like this one are in {found[row.prompt.id]}")
        for row in named
        if row.prompt.id in found
    ]


def near_duplicates(rows: Sequence[PreferenceRow]) -> list[list[str]]:
    """Return the ids of prompts that are near-duplicates of each other, a list for each cluster of two or more."""
    prompts = list({row.prompt.id: row.prompt for row in rows}.values())
    return [[prompts[position].id for position in cluster] for cluster in similar_prompts(prompts)]


def _listed(names: set[str]) -> str:
    return " and ".join(sorted(names))
