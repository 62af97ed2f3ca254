"""Whether a scorer answers from scores that it kept: asked twice, it shows what it said before."""

from dualign.scorers.checked import CheckedScorer
from dualign.scorers.composite import WeightedSum
from dualign.scorers.http.remote import RemoteScorer
from dualign.scorers.log_odds import LogOdds
from dualign.scorers.protocol import Scorer


def keeps_scores(scorer: Scorer) -> bool:
    """Return whether ``scorer``, or one inside it, is behind an address: no row is sent there twice."""
    match scorer:
        case RemoteScorer():
            return True
        case CheckedScorer(scorer=inner) | LogOdds(inner=inner):
            return keeps_scores(inner)
        case WeightedSum(terms=terms):
            return any(keeps_scores(term) for _, term in terms)
        case _:
            return False
