"""The dual solved offline, from reference samples, before any training; and whether those samples can carry the answer.

Every prompt's expectation is a softmax over its K samples, so the estimate can never move mass to a response that the
reference did not draw: KL stays below log K, and a sharp policy is decided by very few samples. The diagnostics say how
few. The result is a start, never a certificate.

Source: Huang et al. 2024 (one-shot dualization) for one constraint; the vector form, the errors and the gates are
reconstructions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dualign.maths.exact import (
    Expectations,
    FiniteProblem,
    FloatArray,
    attainable_costs,
    cost_spreads,
    dual_hessian,
    expectations,
    log_policy,
    optimum,
    prompt_kl,
)
from dualign.maths.preference import ScoredGroup

IntArray = NDArray[np.int64]

ESS_SHARE = 0.1
"""Median effective sample size below this share of the samples warns."""
SMALL_ESS = 5.0
SMALL_ESS_SHARE = 0.1
"""More than this share of prompts below ``SMALL_ESS`` warns."""
LOGIT_SPREAD = 2.0
KL_SATURATION = 0.7


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Whether the samples can carry the estimate; NaN where there are no finite multipliers."""

    ess_median: float
    """Median over prompts of the effective sample size, ``K / sum_k p_k^2 / q_k`` (``1 / sum p^2`` for draws)."""
    ess_share_below_5: float
    """Share of prompts whose effective sample size is below 5."""
    logit_spread: float
    """Pooled within-prompt SD of the relabelled reward over beta; Gaussian logits have KL of half its square."""
    kl_saturation: float
    """Mean of KL over its largest possible value (log K for draws); 1 is best-of-K."""


@dataclass(frozen=True, slots=True)
class OneShot:
    """The offline dual and how far it can be trusted."""

    feasible: bool
    """Whether some reweighting of the samples is strictly below every limit."""
    multipliers: FloatArray
    """Shape ``[constraint]``; NaN where infeasible."""
    multiplier_error: FloatArray
    """Shape ``[constraint]``: standard error from the choice of prompts; 0 for a slack limit, NaN for one prompt."""
    predicted: Expectations
    """Of the optimal policy, or where infeasible of the one with the smallest worst violation."""
    reference: Expectations
    attainable: FloatArray
    """Shape ``[constraint]``: expected cost of the cheapest response of every prompt."""
    diagnostics: Diagnostics
    warnings: tuple[str, ...]
    problem: FiniteProblem
    log_probs: FloatArray
    """Shape ``[prompt, response]``."""


def finite_problem(
    groups: Sequence[ScoredGroup], log_reference: FloatArray, *, limits: FloatArray, beta: float
) -> FiniteProblem:
    """Return the groups as a finite problem, padded to the width of ``log_reference[prompt, response]``."""
    reward, costs = np.zeros(log_reference.shape), np.zeros((*log_reference.shape, len(limits)))
    for row, group in enumerate(groups):
        used = slice(len(group.reward))
        reward[row, used], costs[row, used] = group.reward, group.costs
    prompts = np.array([group.weight for group in groups])
    return FiniteProblem(log_reference, reward, costs, prompts / prompts.sum(), limits, beta)


def from_problem(problem: FiniteProblem, *, draws: bool, units: IntArray | None = None) -> OneShot:
    """Return the offline dual of ``problem``, with diagnostics.

    ``draws``: its responses are samples; else they are the whole support (``-inf`` = padding), and no gate is needed.
    ``units`` (``[prompt]``): number of the unit of independence of each prompt, for the errors; none: each its own.
    """
    best = optimum(problem)
    diagnostics = diagnose(problem, best.log_probs, best.multipliers)
    return OneShot(
        feasible=best.feasible,
        multipliers=best.multipliers,
        multiplier_error=multiplier_error(problem, best.multipliers, units),
        predicted=best.expectations,
        reference=expectations(problem, problem.log_reference),
        attainable=attainable_costs(problem),
        diagnostics=diagnostics,
        warnings=_warnings(problem, diagnostics, draws=draws),
        problem=problem,
        log_probs=best.log_probs,
    )


def effective_samples(log_reference: FloatArray, log_probs: FloatArray) -> FloatArray:
    """Return shape ``[prompt]``: how many reference samples the reweighted ones are worth."""
    support = np.isfinite(log_reference)
    logs = np.subtract(2 * log_probs, log_reference, out=np.full_like(log_probs, -np.inf), where=support)
    ratios = np.exp(logs)
    sizes: FloatArray = support.sum(axis=1) / ratios.sum(axis=1)
    return sizes


def diagnose(problem: FiniteProblem, log_probs: FloatArray, multipliers: FloatArray) -> Diagnostics:
    """Return the diagnostics of a policy ``[prompt, response]`` on the samples of ``problem``."""
    sizes = effective_samples(problem.log_reference, log_probs)
    largest_kl = -np.where(np.isfinite(problem.log_reference), problem.log_reference, np.inf).min(axis=1)
    kl = prompt_kl(log_probs, problem.log_reference)
    saturation = np.divide(kl, largest_kl, out=np.zeros_like(kl), where=largest_kl > 0)
    relabelled = problem.reward - problem.costs @ multipliers
    probs = np.exp(problem.log_reference)
    centred = relabelled - (probs * relabelled).sum(axis=1, keepdims=True)
    spread = np.sqrt(problem.prompt_weights @ (probs * centred**2).sum(axis=1)) / problem.beta
    return Diagnostics(
        ess_median=float(np.median(sizes)),
        ess_share_below_5=float(np.mean(sizes < SMALL_ESS)),
        logit_spread=float(spread),
        kl_saturation=float(problem.prompt_weights @ saturation),
    )


def multiplier_error(problem: FiniteProblem, multipliers: FloatArray, units: IntArray | None = None) -> FloatArray:
    """Return shape ``[constraint]``: standard errors ``H^-1 S H^-1`` over the positive multipliers.

    S is the covariance of the mean cost over units of independence (prompts, unless ``units`` numbers them), H the
    dual's Hessian; one constraint gives ``se(cost) * beta / E_x Var(cost)``.
    """
    place = np.arange(len(problem.prompt_weights)) if units is None else np.unique(units, return_inverse=True)[1]
    count = int(place.max()) + 1
    free = multipliers > 0
    if count < 2 or np.any(np.isnan(multipliers)):
        return np.full(len(multipliers), np.nan)
    means = np.einsum("jk,jki->ji", np.exp(log_policy(problem, multipliers)), problem.costs)
    weighted = problem.prompt_weights[:, None] * (means - problem.prompt_weights @ means)
    centred = np.zeros((count, weighted.shape[1]))
    np.add.at(centred, place, weighted)
    spread = (centred.T @ centred)[np.ix_(free, free)] * count / (count - 1)
    inverse = np.linalg.pinv(dual_hessian(problem, multipliers)[np.ix_(free, free)], hermitian=True)
    errors = np.zeros(len(multipliers))
    errors[free] = np.sqrt(np.diag(inverse @ spread @ inverse))
    return errors


def frontier(shot: OneShot) -> list[tuple[FloatArray, Expectations]]:
    """Return multipliers and what they lead to, along the ray through the solution (or normalised ones)."""
    problem = shot.problem
    direction = shot.multipliers
    if not shot.feasible or not np.any(direction > 0):
        swapped = replace(problem, costs=problem.reward[:, :, None], limits=np.zeros(1))
        direction = float(cost_spreads(swapped)[0]) / cost_spreads(problem)
    shares = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0)
    return [(k * direction, expectations(problem, log_policy(problem, k * direction))) for k in shares]


def _warnings(problem: FiniteProblem, found: Diagnostics, *, draws: bool) -> tuple[str, ...]:
    if not draws:
        return ()
    samples = float(np.median(np.isfinite(problem.log_reference).sum(axis=1)))
    said = []
    if found.ess_median < ESS_SHARE * samples:
        said.append(
            f"median effective sample size {found.ess_median:.1f} of {samples:g} is below {ESS_SHARE:.0%}: "
            "few samples decide; raise beta or sample more responses"
        )
    if found.ess_share_below_5 > SMALL_ESS_SHARE:
        said.append(f"{found.ess_share_below_5:.0%} of the prompts have an effective sample size below 5 (gate 10%)")
    if found.logit_spread > LOGIT_SPREAD:
        said.append(f"logit spread {found.logit_spread:.2g} is above {LOGIT_SPREAD:g}: raise beta")
    if found.kl_saturation > KL_SATURATION:
        said.append(
            f"KL is at {found.kl_saturation:.0%} of what {samples:g} samples can show (gate {KL_SATURATION:.0%}): "
            "the prediction is close to best-of-K"
        )
    return tuple(said)
