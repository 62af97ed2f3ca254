"""One-sided upper confidence bounds on a mean, and the betting e-value behind the certificate.

All take one value a unit of independence (a prompt, or a cluster of prompts: average its responses first),
in an order that was fixed before the values were seen. ``values`` has shape ``[..., unit]``; leading axes are
separate data sets. Costs are bounded above by ``cap`` (larger values count as the cap); nothing is asked of
the other side. No data, or one value where a spread is needed, gives the worst bound there is.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from dualign.maths.exact import FloatArray

BET_FRACTION = 0.9
"""Share of the largest bet that keeps the wealth positive. Lower values (0.5) need twice the prompts to
certify a small rate from a clean sample and gain nothing at wide distributions."""


Schedule = Callable[..., FloatArray]
"""``(log_wealth, variance, *, step, n, log_target) -> bets`` of one step, before they are cut to the largest allowed
one: how much to bet at each step, from the past alone, which is all that the proof of validity asks."""


def fixed_horizon(log_wealth: FloatArray, variance: FloatArray, *, step: int, n: int, log_target: float) -> FloatArray:
    """Return ``sqrt(2 (log target - log wealth) / (variance * steps left))``: aims at the target at step ``n``.

    The idea is Waudby-Smith and Ramdas (2024) and Voracek and Orabona (2025); this schedule is ours.
    """
    missing = np.maximum(log_target - log_wealth, 0.0)
    return np.asarray(np.sqrt(2 * missing / (variance * (n - step + 1))))


def anytime(
    log_wealth: FloatArray,  # noqa: ARG001
    variance: FloatArray,
    *,
    step: int,
    n: int,  # noqa: ARG001
    log_target: float,
) -> FloatArray:
    """Return ``sqrt(2 log target / (variance * step * log(1 + step)))``: no horizon (Waudby-Smith and Ramdas 2024)."""
    return np.asarray(np.sqrt(2 * log_target / (variance * step * math.log1p(step))))


SCHEDULES: dict[str, Schedule] = {"fixed-horizon": fixed_horizon, "anytime": anytime}


def betting_log_wealth(
    values: ArrayLike,
    limit: ArrayLike,
    *,
    cap: float,
    delta: float,
    schedule: Schedule = fixed_horizon,
) -> FloatArray:
    """Return the log of the wealth of a bettor against "the mean is at least ``limit``".

    ``W_i = W_{i-1} (1 + l_i (limit - y_i))`` with ``0 <= l_i <= BET_FRACTION / (cap - limit)`` chosen from the past;
    stopped once it reaches ``1 / delta``. Under the null hypothesis it is a non-negative supermartingale from 1
    for any distribution below the cap, so ``W >= 1 / delta`` has probability at most ``delta`` (Ville 1939).
    The variance starts from one pseudo-observation at half the distance from the limit to the cap.

    Args:
        values: Shape ``[..., unit]``.
        limit: Broadcasts against ``values[..., 0]``; the result has the broadcast shape.
        cap: Largest value; anything above counts as the cap.
        delta: Error rate the bettor aims at.
        schedule: One of ``SCHEDULES``.

    Raises:
        ValueError: a limit is not below the cap, or ``delta`` is not in (0, 1).
    """
    clipped = np.minimum(np.asarray(values, dtype=np.float64), cap)
    limits = np.asarray(limit, dtype=np.float64)
    gap = cap - limits
    if not bool(np.all(gap > 0)):
        raise ValueError(f"every limit must lie below the cap {cap:g}; given {limits.max():g}")
    _require_delta(delta)
    n = clipped.shape[-1]
    spread = _running_squares(clipped)
    log_target = -math.log(delta)
    log_wealth = np.zeros(np.broadcast_shapes(clipped.shape[:-1], limits.shape))
    for step in range(1, n + 1):
        variance = (gap**2 / 4 + spread[..., step - 1]) / step
        bet = np.minimum(schedule(log_wealth, variance, step=step, n=n, log_target=log_target), BET_FRACTION / gap)
        bet = np.where(log_wealth < log_target, bet, 0.0)
        log_wealth = log_wealth + np.log1p(bet * (limits - clipped[..., step - 1]))
    return log_wealth


def betting_e_value(values: ArrayLike, limit: float, *, cap: float, delta: float) -> FloatArray:
    """Return the e-value against "the mean is at least ``limit``"; rejected at ``delta`` from ``1 / delta`` on."""
    return np.asarray(np.exp(betting_log_wealth(values, limit, cap=cap, delta=delta)))


def p_value(e_value: ArrayLike) -> FloatArray:
    """Return ``min(1, 1 / e)``, a p-value by Markov's inequality."""
    return np.asarray(np.minimum(1.0, 1.0 / np.maximum(np.asarray(e_value, dtype=np.float64), 1e-300)))


def betting_upper_bound(
    values: ArrayLike,
    *,
    cap: float,
    delta: float,
    include: Sequence[float] = (),
) -> float:
    """Return the largest mean that the bettor does not reject at ``delta``, rounded upwards on the search grid.

    Wealth need not be monotone in the limit, so the search comes down from the cap. ``include`` names limits
    that the grid must contain: the bound then lies above each of them that is not rejected.

    Args:
        values: Shape ``[unit]``; no unit gives the cap.
        cap: Largest value; anything above counts as the cap.
        delta: One minus the confidence.
        include: Further points of the grid.
    """
    data = np.minimum(np.asarray(values, dtype=np.float64), cap)
    _require_delta(delta)
    if data.size == 0 or not data.min() < cap:
        return float(cap)
    mean, lowest = float(data.mean()), float(data.min())
    above = mean + (cap - mean) * np.geomspace(1e-3, 1.0, 64)
    grid = np.unique(np.concatenate([np.linspace(lowest, mean, 8), above, np.asarray(include, float)]))
    grid = grid[(grid >= lowest) & (grid < cap)]
    low, high = lowest, float(cap)
    for _ in range(3):
        rejected = betting_log_wealth(data, grid, cap=cap, delta=delta) >= -math.log(delta) - 1e-12
        # Below the smallest value every bet loses, so `low` itself is never rejected.
        kept = np.flatnonzero(~rejected)
        if kept.size:
            low = float(grid[kept[-1]])
        higher = grid[grid > low]
        high = min(high, float(higher[0])) if higher.size else high
        grid = np.linspace(low, high, 34)[1:-1]
    return high


def clustered_t(
    values: ArrayLike,
    *,
    cap: float = math.inf,  # noqa: ARG001
    floor: float = -math.inf,  # noqa: ARG001
    delta: float,
) -> FloatArray:
    """Return ``mean + t * s / sqrt(n)`` with n - 1 degrees of freedom: asymptotic, too small at heavy right tails."""
    from scipy.special import stdtrit

    data = np.asarray(values, dtype=np.float64)
    _require_delta(delta)
    n = data.shape[-1]
    if n < 2:
        return np.full(data.shape[:-1], np.inf)
    return np.asarray(data.mean(-1) + stdtrit(n - 1, 1 - delta) * data.std(-1, ddof=1) / math.sqrt(n))


def hoeffding(values: ArrayLike, *, cap: float, floor: float, delta: float) -> FloatArray:
    """Return ``mean + (cap - floor) sqrt(log(1/delta) / 2n)`` (Hoeffding 1963, theorem 2), at most the cap.

    Values below ``floor`` are raised to it, which can only raise the bound; the floor must not come from the data.
    """
    data = _within(values, floor, cap)
    _require_delta(delta)
    n = data.shape[-1]
    if n == 0:
        return np.full(data.shape[:-1], cap)
    width = (cap - floor) * math.sqrt(-math.log(delta) / (2 * n))
    return np.asarray(np.minimum(data.mean(-1) + width, cap))


def maurer_pontil(values: ArrayLike, *, cap: float, floor: float, delta: float) -> FloatArray:
    """Return the empirical Bernstein bound (Maurer and Pontil 2009, theorem 4), at most the cap.

    ``mean + sqrt(2 s^2 log(2/delta) / n) + 7 (cap - floor) log(2/delta) / (3 (n - 1))``; ``floor`` as in ``hoeffding``.
    """
    data = _within(values, floor, cap)
    _require_delta(delta)
    n = data.shape[-1]
    if n < 2:
        return np.full(data.shape[:-1], cap)
    log_term = math.log(2 / delta)
    width = np.sqrt(2 * data.var(-1, ddof=1) * log_term / n) + 7 * (cap - floor) * log_term / (3 * (n - 1))
    return np.asarray(np.minimum(data.mean(-1) + width, cap))


def clopper_pearson(count: int, n: int, *, delta: float) -> float:
    """Return the exact upper bound on a rate from ``count`` events in ``n`` independent trials.

    ``BetaInv(1 - delta; count + 1, n - count)`` (Clopper and Pearson 1934); 1 with no trial or all events.

    Raises:
        ValueError: ``count`` or ``n`` is not an integer with ``0 <= count <= n``. A count is never rebuilt from a
            mean: ``100 * 0.07`` is ``7.000000000000001``.
    """
    from scipy.special import betaincinv

    _require_counts(count, n, delta)
    return 1.0 if count == n else float(betaincinv(count + 1, n - count, 1 - delta))


def binomial_p_value(count: int, n: int, *, rate: float) -> float:
    """Return ``P(X <= count)`` for ``X ~ Binomial(n, rate)``: evidence that the true rate is below ``rate``."""
    from scipy.special import bdtr

    _require_counts(count, n, 0.5)
    return 1.0 if n == 0 else float(bdtr(count, n, rate))


def _betting(values: ArrayLike, *, cap: float, floor: float, delta: float) -> FloatArray:  # noqa: ARG001
    """Return ``betting_upper_bound`` of every data set, in the signature of the table."""
    data = np.asarray(values, dtype=np.float64)
    flat = data.reshape(-1, data.shape[-1]) if data.size else np.empty((int(np.prod(data.shape[:-1])), 0))
    return np.array([betting_upper_bound(row, cap=cap, delta=delta) for row in flat]).reshape(data.shape[:-1])


BOUNDS: dict[str, Callable[..., FloatArray]] = {
    "betting": _betting,
    "clustered-t": clustered_t,
    "hoeffding": hoeffding,
    "maurer-pontil": maurer_pontil,
}
"""``(values, *, cap, floor, delta) -> upper bounds``; rates from counts have ``clopper_pearson`` beside it."""


def _running_squares(values: FloatArray) -> FloatArray:
    """Return at ``[..., i]`` the sum of squared deviations of the first ``i`` values (0 for none, 0 for one)."""
    n = values.shape[-1]
    # Deviations do not depend on the origin; near the mean the difference of sums loses no digits.
    centred = values - (values.mean(-1, keepdims=True) if n else 0.0)
    counts = np.arange(1, n + 1)
    sums = np.maximum(np.cumsum(centred**2, -1) - np.cumsum(centred, -1) ** 2 / counts, 0.0)
    return np.concatenate([np.zeros((*values.shape[:-1], 1)), sums], axis=-1)


def _within(values: ArrayLike, floor: float, cap: float) -> FloatArray:
    if not floor < cap:
        raise ValueError(f"the floor must lie below the cap; given {floor:g} and {cap:g}")
    return np.clip(np.asarray(values, dtype=np.float64), floor, cap)


def _require_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie strictly between 0 and 1; given {delta!r}")


def _require_counts(count: int, n: int, delta: float) -> None:
    if isinstance(count, float) or isinstance(n, float) or not 0 <= count <= n:
        raise ValueError(f"a count must be an integer from 0 to n; given {count!r} of {n!r}")
    _require_delta(delta)
