"""Losses that the dual loop is run with beside DPO's: KLDPO, Dr. DPO, WDPO, B-DPO and SimPO.

The papers' methods are the multiplier 0; labels from scores, the dual rule and limits are new.

KLDPO (Xu et al. 2025, arXiv 2502.01930) looks at the worst pairs in a Kullback-Leibler ball around the data; Dr. DPO
(Wu et al. 2024, arXiv 2407.07880) does the opposite and trusts the pairs that it fits. Both weigh pairs by the
exponential of their loss, within an optimiser step. WDPO (Xu et al. 2025) has a penalty on how fast the loss changes
with the input; the loss is that of the pair under its label. A model takes two derivatives of every pair for it, each
in rows of its own: about four times the work of DPO. With soft labels on a finite world loss and penalty are least at
the Gibbs policy, so nothing moves there: they matter where labels are drawn, wrong, or more than a policy can fit.

B-DPO puts less weight on the side of a pair that the reference understands better. It is a reconstruction: no source
gives the estimator of mutual information, the weights or the scale of Zhao et al. 2026 (arXiv 2603.22829); all three
are choices made here. The paper's arm "scaling only" differs from DPO, and any scale that is 1 for equal weights makes
it DPO: so the scale here is not the paper's. Unequal coefficients have no closed form: the policy is not that of any
relabelled reward.

SimPO (Meng, Xia & Chen 2024, arXiv 2405.14734) has preferences on mean log-probabilities a token, without a reference:
an implicit reward of ``beta log pi(y|x) / |y|`` must lead by a margin gamma. On a table, where a response is one token,
soft labels without a margin end at ``exp(r_lambda / beta)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dualign.errors import UsageError
from dualign.maths.adversarial import clamped_weights, exponential_weights, solve_tau
from dualign.maths.exact import FiniteProblem
from dualign.maths.preference import relabel
from dualign.methods.loop import with_columns
from dualign.methods.options import NOT_NEGATIVE, POSITIVE, Option, Options
from dualign.methods.recipe import Recipe, on_arrays
from dualign.protocols import Informs, Objective, PairBatch, PairLoss, Problem, Side
from dualign.records import FloatArray

if TYPE_CHECKING:
    from torch import Tensor

    from dualign.maths.losses import ScaleFunction, WeightFunction


def kldpo(plain: Objective, options: Options) -> Objective:
    """Return DPO with weights that grow with the loss.

    Raises:
        UsageError: rho with the form ``code``.
    """
    form, tau, rho = options["form"], float(options["tau"]), float(options["rho"])
    if rho > 0 and form == "code":
        raise UsageError("option rho of kldpo: only the form paper attains the worst case of a ball; give tau")

    def weights(losses: FloatArray, plain: FloatArray) -> FloatArray:
        if form == "code":
            return clamped_weights(losses, plain, tau=tau)
        if rho > 0:
            return ball_weights(losses, plain, rho=rho)
        return exponential_weights(losses, plain, tau=tau)

    return replace(plain, weigh=on_arrays(weights))


def ball_weights(losses: FloatArray, weights: FloatArray, *, rho: float) -> FloatArray:
    """Return the weights of the worst mean loss in the ball of radius ``rho`` nats, at the sum of ``weights``."""
    tau = solve_tau(losses, weights, rho=rho)
    if tau == 0:
        largest = losses[weights > 0].max()
        worst = np.where(losses == largest, weights, 0.0)
        return np.asarray(worst * (weights.sum() / worst.sum()))
    return exponential_weights(losses, weights, tau=tau)


def dr_dpo(plain: Objective, options: Options) -> Objective:
    """Return DPO with weights that fall with the loss: the gradient of ``-width log mean exp(-loss / width)``."""
    width = float(options["width"])
    return replace(plain, weigh=on_arrays(lambda losses, weights: exponential_weights(losses, weights, tau=-width)))


KLDPO = Recipe(
    "kldpo",
    kldpo,
    (
        Option(
            "form",
            "paper",
            "paper: weights sum to 1; code: as released, clamped at 10 and not scaled",
            ("paper", "code"),
        ),
        Option(
            "tau",
            1.0,
            "width of the weights exp(loss / tau); smaller looks at the largest losses alone",
            within=POSITIVE,
        ),
        Option(
            "rho",
            0.0,
            "radius of the ball in nats, from which tau is solved at every step; 0: tau is given",
            within=NOT_NEGATIVE,
        ),
    ),
)
DR_DPO = Recipe(
    "dr-dpo",
    dr_dpo,
    (Option("width", 1.0, "b of the weights exp(-loss / b); smaller trusts fewer pairs", within=POSITIVE),),
)


def wdpo(plain: Objective, options: Options) -> Objective:
    """Return DPO with the penalty; of the form ``paper`` its mean is over a micro-step."""
    from dualign.maths.losses import root_mean_square_penalty, squared_norm_penalty

    form, rho = options["form"], float(options["rho"])

    def penalty(batch: PairBatch, losses: Tensor) -> Tensor:
        assert batch.embedding_gradient is not None
        squared = batch.embedding_gradient(losses)
        if form == "code":
            return squared_norm_penalty(squared, rho=rho)
        return root_mean_square_penalty(squared, batch.weight, rho=rho)

    return replace(plain, penalty=penalty)


WDPO = Recipe(
    "wdpo",
    wdpo,
    (
        Option(
            "form", "paper", "paper: the root of the mean squared norm; code: as released, no root", ("paper", "code")
        ),
        Option(
            "rho",
            0.01,
            "radius of the ball; the norm carries beta, so a smaller beta needs a larger rho",
            within=NOT_NEGATIVE,
        ),
    ),
)


INFORMATION = "mutual_information"
"""Per-response column: (log pi_ref(y|x) - log pi_ref(y)) / |y|, over its root mean square difference in a pair."""
LEAST_SPREAD = 1e-6


def balanced(beta: float, *, weights: WeightFunction, scale: ScaleFunction) -> PairLoss:
    """Return the loss ``-log sigmoid(s beta (omega_w Delta_w - omega_l Delta_l))`` with functions of one's own."""
    from dualign.maths.losses import two_sided

    def loss(preferred: Side, other: Side) -> Tensor:
        omegas = weights(preferred.columns[INFORMATION], other.columns[INFORMATION])
        factor = beta * scale(*omegas)
        return two_sided(preferred.log_ratio, other.log_ratio, (factor * omegas[0], factor * omegas[1]))

    return loss


def b_dpo(plain: Objective, options: Options) -> Objective:
    """Return the objective with the default weights and the scale that ``options`` name."""
    from dualign.maths.losses import SCALES, logistic_weights

    loss = balanced(plain.beta, weights=logistic_weights, scale=SCALES[str(options["scale"])])
    return replace(plain, loss=loss, columns=(INFORMATION,))


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
    column = {INFORMATION: [values / spread for values in information]}
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


TOKENS, REFERENCE = "tokens", "log_reference"
"""Per-response columns: |y|, and the reference's log-probability, which a log-ratio is turned back by."""


def simpo(plain: Objective, options: Options) -> Objective:
    """Return ``-log sigmoid((beta (mean_w - mean_l) - gamma) / temperature)`` of mean log-probabilities (eq. 6)."""
    beta, lead = float(options["scale"]) * plain.beta, float(options["gamma_beta_ratio"])

    def loss(preferred: Side, other: Side) -> Tensor:
        from torch.nn.functional import logsigmoid

        means = [(side.log_ratio + side.columns[REFERENCE]) / side.columns[TOKENS] for side in (preferred, other)]
        return -logsigmoid(beta * (means[0] - means[1] - lead))

    return replace(plain, loss=loss, beta=beta, columns=(TOKENS, REFERENCE))


def with_lengths(problem: Problem) -> Problem:
    """Return ``problem`` with each response's number of tokens and reference log-probability as columns."""
    tokens = [np.array([len(r.tokens) or 1 for r in group.responses], dtype=float) for group in problem.groups]
    reference = problem.backend.log_probs(problem.reference, problem.groups)
    return replace(problem, groups=with_columns(problem.groups, **{TOKENS: tokens, REFERENCE: reference}))


def simpo_target(problem: FiniteProblem, multipliers: FloatArray, options: Options) -> FloatArray:
    """Return ``exp(r_lambda / beta) / Z`` over the responses that there are: the policy without a margin."""
    scores = relabel(problem.reward, problem.costs, multipliers) / (float(options["scale"]) * problem.beta)
    logits = np.where(np.isfinite(problem.log_reference), scores, -np.inf)
    return np.asarray(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


SIMPO = Recipe(
    "simpo",
    simpo,
    (
        Option(
            "scale",
            10.0,
            "coefficient of the mean log-probability a token, as a multiple of the problem's beta; an answer's length "
            "makes it as sharp as DPO",
            within=POSITIVE,
        ),
        Option("gamma_beta_ratio", 0.5, "gamma / beta: the lead that is asked of a winner", within=NOT_NEGATIVE),
    ),
    prepare=with_lengths,
)
