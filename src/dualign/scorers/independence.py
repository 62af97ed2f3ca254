"""Who judges whom: a score that a policy was trained on says little about that policy.

A policy that is pushed towards a score finds the score's mistakes, so that the same scorer measures its own success
(Gao, Schulman, Hilton 2023). An independent scorer of the same quantity shows how much of it is real.
"""

from collections.abc import Mapping

from dualign.scorers.protocol import Scorer

SAME_SCORE = "the score reported is the score trained on"


def same_scorer(first: Scorer, second: Scorer) -> bool:
    """Return whether two scorers give the same numbers by all that they say of themselves: id and revision."""
    return (first.id, first.revision) == (second.id, second.revision)


def dependence(trained: Mapping[str, Scorer], judges: Mapping[str, Scorer]) -> list[str]:
    """Return the names of the scores in ``trained`` that nobody but the scorer itself judges."""
    return [name for name, scorer in trained.items() if name not in judges or same_scorer(scorer, judges[name])]


def dependence_warnings(trained: Mapping[str, Scorer], judges: Mapping[str, Scorer]) -> list[str]:
    """Return one line that names the scores without an independent judge; none where every score has one."""
    names = dependence(trained, judges)
    return [f"{SAME_SCORE}: {', '.join(names)}; name an independent scorer under evaluation.judge"] if names else []
