"""Scores, limits and beta -> what to expect, before any training: reachable, multipliers, predictions, errors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualign.data.score_file import Scores
from dualign.data.splits import near_clusters
from dualign.errors import NumericalError
from dualign.hashing import plain
from dualign.maths.exact import Expectations, FiniteProblem, FloatArray
from dualign.maths.one_shot import OneShot, from_problem, frontier

LOWEST = "the smallest cost that these responses can reach"


def plan_figures(scores: Scores, limits: Mapping[str, float], beta: float) -> dict[str, Any]:
    """Return the plan's JSON object, raw units; what has no value (a multiplier where infeasible) is None.

    ``limits`` names costs of ``scores``; costs without a limit play no part.

    Raises:
        NumericalError: the scores are too large for ``beta`` to leave a finite number.
    """
    names = list(limits)
    clusters = near_clusters(scores.asked)
    units = np.unique([clusters[prompt.id] for prompt in scores.asked], return_inverse=True)[1]
    n_units = len(set(clusters.values()))
    # Costs about a slice were divided by its share: the multiplier of the costs as they were is larger by as much.
    shares = np.array([scores.shares.get(name, 1.0) for name in names])
    shot = _solve(scores, limits, beta, units)
    found = shot.diagnostics

    def named(values: FloatArray) -> dict[str, float]:
        return dict(zip(names, values.tolist(), strict=True))

    def achieved(found: Expectations) -> dict[str, Any]:
        return {"reward": found.reward, "costs": named(found.costs), "kl": found.kl}

    reference = achieved(shot.reference)
    del reference["kl"]  # of the reference to itself
    figures = {
        "feasible": shot.feasible,
        "beta": beta,
        "limits": dict(limits),
        "multipliers": named(shot.multipliers / shares),
        "predicted": achieved(shot.predicted),
        "reference": reference,
        "attainable": named(shot.attainable),
        "multiplier_error": named(shot.multiplier_error / shares),
        "diagnostics": {
            "ess_median": found.ess_median,
            "ess_share_below_5": found.ess_share_below_5,
            "logit_spread": found.logit_spread,
            "kl_saturation": found.kl_saturation,
        },
        "warnings": [*_infeasible(names, shot), *shot.warnings, *_near_copies(len(scores.asked), n_units)],
        "frontier": [
            {"multipliers": named(multipliers / shares)} | achieved(found) for multipliers, found in frontier(shot)
        ],
        "n_prompts": len(scores.asked),
        "n_units": n_units,
    }
    return dict(plain(figures))


def _near_copies(prompts: int, units: int) -> list[str]:
    if units == prompts:
        return []
    return [f"{prompts} prompts are {units} units (near-copies count once): errors are those of {units}"]


def _solve(scores: Scores, limits: Mapping[str, float], beta: float, units: NDArray[np.intp]) -> OneShot:
    """Return the offline dual; overflow is an error here, because a NaN would pass for a verdict."""
    problem = FiniteProblem(
        log_reference=scores.log_weights,
        reward=scores.reward,
        costs=np.stack([scores.costs[name] for name in limits], axis=-1),
        prompt_weights=scores.prompt_weights,
        limits=np.array(list(limits.values()), dtype=np.float64),
        beta=beta,
    )
    try:
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            return from_problem(problem, draws=scores.draws, units=units)
    except (FloatingPointError, ArithmeticError, np.linalg.LinAlgError) as error:
        raise NumericalError(f"plan: {error}; the scores are too large for beta {beta:g}: rescale them") from error


def _infeasible(names: Sequence[str], shot: OneShot) -> list[str]:
    if shot.feasible:
        return []
    if len(names) == 1:
        return [f"limit {shot.problem.limits[0]:g} of {names[0]!r} is not above {shot.attainable[0]:g}, {LOWEST}"]
    said = [
        f"limit {limit:g} of {name!r} is not above {low:g}, {LOWEST}"
        for name, limit, low in zip(names, shot.problem.limits, shot.attainable, strict=True)
        if limit <= low
    ]
    return said or [f"no policy meets the limits of {', '.join(names)} together, though each alone can be met"]
