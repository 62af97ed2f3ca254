"""How often forecasts come true: shares with errors clustered by prompt, reliability tables, calibration error."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Share:
    """A mean over rows, with a two-sided t interval clustered by prompt, cut to [0, 1]."""

    value: float
    low: float
    high: float
    error: float
    """Standard error; infinite below two prompts."""
    n: int
    n_prompts: int


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """The forecasts between two edges, and how often they came true."""

    low: float
    high: float
    forecast: float
    """Mean forecast of the rows in the bin."""
    observed: Share


def clustered_mean(values: ArrayLike, prompt_index: ArrayLike) -> tuple[float, float]:
    """Return the mean over rows and its standard error, rows of one prompt being correlated in any way.

    The mean is a ratio of two sums over prompts, of values and of rows; its error is linearised (Cochran 1977,
    section 3.12): sqrt(m / (m - 1) * sum over prompts of (sum of value - mean)^2) / rows. Infinite below two prompts.
    """
    data = np.asarray(values, dtype=np.float64)
    place = np.unique(np.asarray(prompt_index), return_inverse=True)[1]
    if not data.size:
        return math.nan, math.inf
    mean = float(data.mean())
    residuals = np.bincount(place, weights=data - mean)
    prompts = residuals.size
    if prompts < 2:
        return mean, math.inf
    return mean, math.sqrt(prompts / (prompts - 1) * float(residuals @ residuals)) / data.size


def clustered_share(values: ArrayLike, prompt_index: ArrayLike, *, confidence: float = 0.95) -> Share:
    """Return the mean of ``values`` in [0, 1] with its interval; [0, 1] where too few prompts are there to tell.

    Where all values are equal the error is 0 and says nothing: the interval is then the exact binomial one
    (Clopper and Pearson 1934) of as many trials as there are prompts, which is on the wide side.
    """
    from scipy.special import stdtrit

    data, prompts = np.asarray(values, dtype=np.float64), np.unique(np.asarray(prompt_index)).size
    mean, error = clustered_mean(data, prompt_index)
    if prompts < 2:
        low, high = 0.0, 1.0
    elif error == 0 and mean in (0.0, 1.0):
        reach = ((1 - confidence) / 2) ** (1 / prompts)
        low, high = (0.0, 1 - reach) if mean == 0 else (reach, 1.0)
    else:
        half = float(stdtrit(prompts - 1, (1 + confidence) / 2)) * error
        low, high = max(0.0, mean - half), min(1.0, mean + half)
    return Share(mean, low, high, error, data.size, prompts)


def wilson(share: float, trials: int, confidence: float) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of a share seen in ``trials`` trials."""
    from scipy.special import ndtri

    z = float(ndtri((1 + confidence) / 2))
    centre = share + z**2 / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def reliability_table(
    forecast: ArrayLike, outcome: ArrayLike, prompt_index: ArrayLike, *, edges: ArrayLike
) -> tuple[ReliabilityBin, ...]:
    """Return the bins between ``edges`` that hold a forecast; the last edge belongs to the last bin.

    Raises:
        ValueError: a forecast lies outside the edges.
    """
    probability, came_true = np.asarray(forecast, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    borders, index = np.asarray(edges, dtype=np.float64), np.asarray(prompt_index)
    bins = []
    place = _bins(probability, borders)
    for number in np.unique(place):
        here = place == number
        bins.append(
            ReliabilityBin(
                low=float(borders[number]),
                high=float(borders[number + 1]),
                forecast=float(probability[here].mean()),
                observed=clustered_share(came_true[here], index[here]),
            )
        )
    return tuple(bins)


def expected_calibration_error(forecast: ArrayLike, outcome: ArrayLike, *, edges: ArrayLike) -> float:
    """Return the mean over rows of ``|mean outcome - mean forecast|`` of a row's bin (Naeini et al. 2015, eq. 3).

    It is never below 0, so that noise alone makes it positive: compare it with ``calibration_noise``.
    """
    probability, came_true = np.asarray(forecast, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    if not probability.size:
        return math.nan
    place = _bins(probability, np.asarray(edges, dtype=np.float64))
    return float(np.abs(np.bincount(place, weights=came_true - probability)).sum() / probability.size)


def calibration_noise(forecast: ArrayLike, *, edges: ArrayLike, seed: int, draws: int = 200) -> float:
    """Return the mean calibration error of these very forecasts if each came true as often as it says.

    Outcomes are drawn apart from each other; those of one prompt are not, so that this is a little low.
    """
    probability = np.asarray(forecast, dtype=np.float64)
    rng = np.random.default_rng(seed)
    errors = [
        expected_calibration_error(probability, rng.random(probability.size) < probability, edges=edges)
        for _ in range(draws)
    ]
    return float(np.mean(errors))


def _bins(probability: FloatArray, edges: FloatArray) -> NDArray[np.int64]:
    if probability.size and not (edges[0] <= probability.min() and probability.max() <= edges[-1]):
        raise ValueError(f"forecasts from {probability.min():g} to {probability.max():g}, edges {edges[0]:g} to "
                         f"{edges[-1]:g}")  # fmt: skip
    return np.minimum(np.searchsorted(edges, probability, side="right") - 1, edges.size - 2).astype(np.int64)
