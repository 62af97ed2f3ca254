"""The dual of a constrained problem and the rules that solve it: the names that others import, and the table."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dualign.maths.bracket import bracket, newton
from dualign.maths.dual_rule import (
    DualRule,
    DualState,
    Observation,
    Status,
    Stopping,
    first_steps,
    initial,
    is_exact,
    resolve,
    select,
)
from dualign.maths.exact import (
    Expectations,
    FiniteProblem,
    FloatArray,
    dual_gradient,
    dual_hessian,
    dual_value,
    expectations,
    log_policy,
)
from dualign.maths.projected_newton import projected_newton


def gradient(*, step: float, stopping: Stopping = Stopping()) -> DualRule:  # noqa: B008 (frozen)
    """Return the rule ``multipliers <- max(0, multipliers + step * violation)``, dual descent as in C-DPO.

    With ``step <= 1 / L``, ``L = max_x sum_i range_x(c_i)^2 / (4 beta)``, the dual value never rises. It stops where no
    limit is broken and no multiplier is held up against a limit that is slack, by the tolerance or ``z`` errors, and
    where in exact observations the multipliers have settled too.

    Source: Liu, Sun & Zheng 2024 (C-DPO) for direction and loop; the projection and the stop are reconstructions.

    Raises:
        ValueError: a step that is not positive.
    """
    if not step > 0:
        raise ValueError(f"step must be positive, got {step}")

    def update(observation: Observation, state: DualState) -> DualState:
        state, settled = first_steps(observation, state, stopping)
        if settled:
            return state
        here = observation.multipliers
        following = np.maximum(0.0, here + step * observation.violation)
        noise = np.maximum(stopping.violation_tolerance, stopping.z * observation.error)
        residual = np.where(here > 0, np.abs(observation.violation), np.maximum(observation.violation, 0))
        if np.all(residual <= noise) and _settled(state, following, stopping):
            return resolve(state, "converged", here)
        if np.any((here >= stopping.largest) & (observation.violation > noise)):
            return resolve(state, "infeasible", here)
        if state.round >= stopping.budget:
            index, _ = select(state.history, stopping)
            return resolve(state, "budget", state.history[index].multipliers)
        return replace(state, multipliers=np.minimum(following, stopping.largest))

    return DualRule("gradient", initial, update)


def _settled(state: DualState, following: FloatArray, stopping: Stopping) -> bool:
    """Return whether the predicted distance to the root is within tolerance (a geometric series)."""
    if not is_exact(state.history):
        return True
    here, before = state.history[-1].multipliers, state.history[-2].multipliers
    last, ahead = np.abs(here - before).max(), np.abs(following - here).max()
    remaining = ahead / (1 - ahead / last) if ahead < last else (0.0 if ahead == 0 else np.inf)
    allowed = max(stopping.multiplier_tolerance, stopping.relative_tolerance * float(here.max(initial=0)))
    return bool(remaining <= allowed / 2)


def fixed(multipliers: FloatArray) -> DualRule:
    """Return the rule that evaluates ``multipliers`` once and keeps them, whatever the violation."""
    chosen = np.asarray(multipliers, dtype=np.float64)

    def init(start: FloatArray) -> DualState:
        if np.shape(start) != chosen.shape:
            raise ValueError(f"fixed multipliers are {chosen.size}, constraints are {np.size(start)}")
        return replace(initial(chosen), multipliers=chosen)

    def update(observation: Observation, state: DualState) -> DualState:
        return replace(state, status="converged", history=(*state.history, observation))

    return DualRule("fixed", init, update)


def margin(spread: float, *, n_tune: int, n_calibration: int, delta: float, width_ratio: float = 1.0) -> float:
    """Return how far below the limit the dual must aim so that the certificate passes 9 times out of 10.

    ``(z_{1-delta} s / sqrt(n_calibration) + z_.90 s sqrt(1 / n_calibration + 1 / n_tune)) * width_ratio``, in the units
    of ``spread`` = s, the SD of the prompts' mean costs; ``width_ratio`` is the certificate's width over that of a t
    bound. A loop that aims at the limit itself breaks it half of the time. A reconstruction.

    Raises:
        ValueError: no prompts, or a ``delta`` outside (0, 1).
    """
    if n_tune < 1 or n_calibration < 1:
        raise ValueError(f"a margin needs prompts, got {n_tune} to tune and {n_calibration} to calibrate")
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie between 0 and 1, got {delta}")
    from scipy.special import ndtri

    bound = float(ndtri(1 - delta)) * spread / np.sqrt(n_calibration)
    luck = float(ndtri(0.90)) * spread * np.sqrt(1 / n_calibration + 1 / n_tune)
    return float((bound + luck) * width_ratio)


DUAL_RULES: dict[str, Callable[..., DualRule]] = {
    "bracket": bracket,
    "gradient": gradient,
    "newton": newton,
    "projected_newton": projected_newton,
    "fixed": fixed,
}
"""Name -> factory. ``bracket`` and ``newton`` take one constraint; all but ``fixed`` take ``stopping``."""

__all__ = [
    "DUAL_RULES",
    "DualRule",
    "DualState",
    "Expectations",
    "FiniteProblem",
    "FloatArray",
    "Observation",
    "Status",
    "Stopping",
    "bracket",
    "dual_gradient",
    "dual_hessian",
    "dual_value",
    "expectations",
    "fixed",
    "gradient",
    "log_policy",
    "margin",
    "newton",
    "projected_newton",
    "select",
]
