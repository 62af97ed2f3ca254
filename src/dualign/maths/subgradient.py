"""The dual subgradient from a good start: what a one-shot dual is corrected by on the policy's own answers."""

from dataclasses import replace

import numpy as np

from dualign.maths.dual_rule import DualRule, DualState, Observation, Stopping, resolve, select
from dualign.maths.finite import FloatArray


def subgradient(*, step: float, stopping: Stopping) -> DualRule:
    """Return the rule ``multipliers <- max(0, multipliers + step violation)`` that begins at its start, not at 0.

    It stops where no limit is broken and no multiplier is held up against a limit that is slack, by the tolerance or
    ``z`` errors, or where the budget is spent. Source: Zhang et al. 2025 (CAID, arXiv 2505.19387); the stop is a
    reconstruction.

    Raises:
        ValueError: a step that is not positive.
    """
    if not step > 0:
        raise ValueError(f"step must be positive, got {step}")

    def init(start: FloatArray) -> DualState:
        return DualState(multipliers=start, start=start)

    def update(observation: Observation, state: DualState) -> DualState:
        state = replace(state, history=(*state.history, observation))
        here = observation.multipliers
        noise = np.maximum(stopping.violation_tolerance, stopping.z * observation.error)
        residual = np.where(here > 0, np.abs(observation.violation), observation.violation)
        if np.all(residual <= noise):
            return resolve(state, "converged" if np.any(here > 0) else "slack", here)
        if state.round >= stopping.budget:
            index, _ = select(state.history, stopping)
            return resolve(state, "budget", state.history[index].multipliers)
        following = np.maximum(0.0, here + step * observation.violation)
        return replace(state, multipliers=np.minimum(following, stopping.largest))

    return DualRule("subgradient", init, update)
