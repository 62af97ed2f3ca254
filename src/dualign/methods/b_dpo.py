"""B-DPO: DPO with less weight on the side of a pair that the reference understands better. A reconstruction.

No source gives the estimator of mutual information, the weights or the scale of Zhao et al. 2026 (arXiv 2603.22829);
all three are choices made here. The paper's arm "scaling only" differs from DPO, and any scale that is 1 for equal
weights makes it DPO: so the scale here is not the paper's. The paper's method is the multiplier 0. Unequal coefficients
have no closed form: the policy is not that of any relabelled reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dualign.errors import UsageError
from dualign.methods.loop import with_columns
from dualign.methods.options import Option, Options
from dualign.methods.recipe import Recipe
from dualign.protocols import Informs, Objective, PairLoss, Problem, Side
from dualign.records import FloatArray

if TYPE_CHECKING:
    from torch import Tensor

    from dualign.maths.losses import ScaleFunction, WeightFunction

COLUMN = "mutual_information"
"""Per-response column: (log pi_ref(y|x) - log pi_ref(y)) / |y|, over its root mean square difference in a pair."""
LEAST_SPREAD = 1e-6


def balanced(beta: float, *, weights: WeightFunction, scale: ScaleFunction) -> PairLoss:
    """Return the loss ``-log sigmoid(s beta (omega_w Delta_w - omega_l Delta_l))`` with functions of one's own."""
    from dualign.maths.losses import two_sided

    def loss(preferred: Side, other: Side) -> Tensor:
        omegas = weights(preferred.columns[COLUMN], other.columns[COLUMN])
        factor = beta * scale(*omegas)
        return two_sided(preferred.log_ratio, other.log_ratio, (factor * omegas[0], factor * omegas[1]))

    return loss


def b_dpo(plain: Objective, options: Options) -> Objective:
    """Return the objective with the default weights and the scale that ``options`` name."""
    from dualign.maths.losses import SCALES, logistic_weights

    loss = balanced(plain.beta, weights=logistic_weights, scale=SCALES[str(options["scale"])])
    return replace(plain, loss=loss, columns=(COLUMN,))


def with_mutual_information(problem: Problem) -> Problem:
    """Return ``problem`` with the reference's mutual information as a column of its groups.

    Raises:
        UsageError: the backend cannot read a response without its prompt.
    """
    backend = problem.backend
    if not isinstance(backend, Informs):
        raise UsageError("b-dpo: needs log-probabilities of responses without their prompt; this backend has none")
    information = backend.mutual_information(problem.reference, problem.groups)
    spread = max(LEAST_SPREAD, pair_spread(information, [group.weight for group in problem.groups]))
    column = {COLUMN: [values / spread for values in information]}
    return replace(problem, groups=with_columns(problem.groups, **column))


def pair_spread(values: Sequence[FloatArray], weights: Sequence[float]) -> float:
    """Return the root mean square difference in a pair of a group; ``values`` are ``[response]`` a group.

    It is the standard deviation over the pairs in both orders. Pairs of a group share the group's weight; the mean
    square over the pairs of a group is twice its variance.
    """
    squares = [2 * float(np.var(value, ddof=1)) for value in values]
    return float(np.sqrt(np.average(squares, weights=weights)))


B_DPO = Recipe(
    "b-dpo",
    b_dpo,
    (
        Option(
            "scale",
            "norm",
            "norm: the two coefficients keep the norm that DPO gives them; none: the plain weights",
            ("norm", "none"),
        ),
    ),
    prepare=with_mutual_information,
)
