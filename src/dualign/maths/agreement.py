"""How far two scores of the same answers agree: ranks, order within prompts, signs."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dualign.maths.bounds import binomial_p_value
from dualign.maths.estimates import half_width, rows_of_prompts
from dualign.maths.exact import FloatArray

IntArray = NDArray[np.int64]


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Return the correlation of the ranks, ties at their mean rank (Spearman 1904); NaN where one score is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(np.asarray(values, dtype=np.float64)) for values in (first, second)]
    a, b = (rank - (rank.size + 1) / 2 for rank in ranks)
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm > 0 else math.nan


def pair_agreement(first: ArrayLike, second: ArrayLike) -> FloatArray:
    """Return shape ``[pair]``: 1 where two differences have the same sign, 0 where opposite, 1/2 where one is 0."""
    signs = np.sign(np.asarray(first, dtype=np.float64)) * np.sign(np.asarray(second, dtype=np.float64))
    return np.asarray((1 + signs) / 2)


def cohen_kappa(first: ArrayLike, second: ArrayLike) -> float:
    """Return the agreement of two yes-or-no judgements beyond chance: ``(p_o - p_e) / (1 - p_e)`` (Cohen 1960).

    1 is perfect, 0 what two judges with these shares of "yes" would have by chance; NaN where both always say the
    same word, because chance alone would do as well.
    """
    a, b = np.asarray(first, dtype=np.bool_), np.asarray(second, dtype=np.bool_)
    if not a.size:
        return math.nan
    chance = float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
    return (float((a == b).mean()) - chance) / (1 - chance) if chance < 1 else math.nan


def pairs_within(prompt_index: ArrayLike) -> tuple[IntArray, IntArray]:
    """Return the rows of every pair of distinct rows with one prompt number, each pair once: two of ``[pair]``."""
    found = [
        (rows[first], rows[second])
        for rows in rows_of_prompts(prompt_index)
        for first, second in [np.triu_indices(rows.size, 1)]
    ]
    return np.concatenate([first for first, _ in found]), np.concatenate([second for _, second in found])


BoolArray = NDArray[np.bool_]


def clustered_auc(
    score: FloatArray, label: BoolArray, group: IntArray, confidence: float
) -> tuple[float, float, float]:
    """Return (AUC, lower, upper): P(a positive scores above a negative), ties counting one half.

    The variance is Obuchowski's (1997, Biometrics 53, eq. 3-6), which is DeLong's when every group is one row;
    the interval is made on the logit scale. At an AUC of 0 or 1 that variance is 0: the bound is then the exact
    binomial one for the smaller number of groups with a row of a class (a reconstruction, on the wide side).
    """
    from scipy.special import ndtri

    positive, negative = _placements(score, label)
    area = float(positive.mean())
    groups = int(group.max()) + 1
    by_positive = np.bincount(group[label], weights=positive - area, minlength=groups)
    by_negative = np.bincount(group[~label], weights=negative - area, minlength=groups)
    with_positive = len(np.unique(group[label]))
    with_negative = len(np.unique(group[~label]))
    fewest = min(with_positive, with_negative)
    if area in (0.0, 1.0) or fewest < 2:
        return area, *_all_alike(area, fewest, confidence)
    share_positive, share_negative = by_positive / len(positive), by_negative / len(negative)
    variance = (
        _spread(share_positive, share_positive, with_positive)
        + _spread(share_negative, share_negative, with_negative)
        + 2 * _spread(share_positive, share_negative, groups)
    )
    half = float(ndtri((1 + confidence) / 2)) * math.sqrt(max(variance, 0.0)) / (area * (1 - area))
    centre = math.log(area / (1 - area))
    return area, _logistic(centre - half), _logistic(centre + half)


def _all_alike(share: float, trials: int, confidence: float) -> tuple[float, float]:
    """Return the exact binomial interval (Clopper and Pearson 1934) where all trials agree."""
    reach = ((1 - confidence) / 2) ** (1 / trials)
    return (reach, 1.0) if share > 0.5 else (0.0, 1 - reach)


def _spread(first: FloatArray, second: FloatArray, groups: int) -> float:
    return groups / (groups - 1) * float(first @ second)


def _placements(score: FloatArray, label: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Return, for each positive, the share of negatives below it; for each negative, of positives above it."""
    positive, negative = score[label], score[~label]
    below = _share_below(positive, np.sort(negative))
    above = 1 - _share_below(negative, np.sort(positive))
    return below, above


def _share_below(values: FloatArray, ordered: FloatArray) -> FloatArray:
    left, right = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return np.asarray((left + right) / (2 * len(ordered)), dtype=np.float64)


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


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
    data, prompts = np.asarray(values, dtype=np.float64), np.unique(np.asarray(prompt_index)).size
    mean, error = clustered_mean(data, prompt_index)
    if prompts < 2:
        low, high = 0.0, 1.0
    elif error == 0 and mean in (0.0, 1.0):
        low, high = _all_alike(mean, prompts, confidence)
    else:
        half = half_width(error, prompts - 1, confidence)
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


@dataclass(frozen=True, slots=True)
class SignTest:
    """Votes of prompts on the sign of a score, and how likely such a vote is by chance."""

    right: int
    """Prompts of which most pairs are in the right order."""
    wrong: int
    tied: int
    """Prompts without a majority; they are left out."""
    p_right: float
    """One-sided p-value against "right at most every other time": small says that the sign is right."""
    p_wrong: float
    """The same the other way round: small says that the sign is wrong."""


def sign_test(difference: ArrayLike, prompt_index: ArrayLike) -> SignTest:
    """Return the sign test (Arbuthnott 1710) of ``difference[pair]``, positive where the order is right.

    The pairs of a prompt share its answers, so they cast one vote: the sign of (right pairs - wrong pairs). Votes of
    distinct prompts are independent, and under chance each is right with probability 1/2 once it is not a tie.
    """
    _, place = np.unique(np.asarray(prompt_index), return_inverse=True)
    votes = np.sign(np.bincount(place, weights=np.sign(np.asarray(difference, dtype=np.float64))))
    right, wrong = int((votes > 0).sum()), int((votes < 0).sum())
    cast = right + wrong
    return SignTest(
        right=right,
        wrong=wrong,
        tied=votes.size - cast,
        p_right=binomial_p_value(wrong, cast, rate=0.5),
        p_wrong=binomial_p_value(right, cast, rate=0.5),
    )
