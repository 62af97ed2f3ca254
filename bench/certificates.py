"""Calibration and power of the upper bounds, by simulation. Run: ``python bench/certificates.py`` (about a minute).

Four cost distributions whose *capped* mean is exactly at the limit (or a given distance below it), several
responses a prompt, costs capped at 50. Calibration: how often a bound certifies at the boundary, which must
not exceed delta. Power: how often at true means below the limit.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from dualign.maths.bounds import betting_log_wealth, clustered_t, hoeffding, maurer_pontil

FloatArray = NDArray[np.float64]
CAP, FLOOR, LIMIT, RESPONSES = 50.0, -50.0, 0.0, 5


@dataclass(frozen=True, slots=True)
class Distribution:
    """Costs of ``[repetition, prompt, response]`` before the cap, and the exact mean after it."""

    draw: Callable[[np.random.Generator, tuple[int, int]], FloatArray]
    capped_mean: Callable[[float], float]
    """Exact mean of min(cost + shift, cap) as a function of the shift."""

    def sample(self, rng: np.random.Generator, shape: tuple[int, int], *, mean: float) -> FloatArray:
        """Return ``[repetition, prompt]`` means of capped costs whose expectation is ``mean``."""
        shift = brentq(lambda x: self.capped_mean(x) - mean, -200, 200, xtol=1e-12)
        return np.minimum(self.draw(rng, shape) + shift, CAP).mean(-1)


def _normal_capped(mean: float, sd: float) -> float:
    """Return E min(X, cap) for a normal X."""
    z = (CAP - mean) / sd
    return float(mean * norm.cdf(z) - sd * norm.pdf(z) + CAP * norm.sf(z))


def _lognormal_capped(shift: float, scale: float, sigma: float) -> float:
    """Return E min(scale * exp(sigma Z) + shift, cap)."""
    if shift >= CAP:
        return CAP
    z = math.log((CAP - shift) / scale) / sigma
    below = scale * math.exp(sigma**2 / 2) * norm.cdf(z - sigma) + shift * norm.cdf(z)
    return float(below + CAP * norm.sf(z))


def _effects(rng: np.random.Generator, shape: tuple[int, int], share: float) -> FloatArray:
    """Return unit normals with the given share of variance between prompts."""
    prompt = rng.standard_normal((*shape, 1))
    response = rng.standard_normal((*shape, RESPONSES))
    return math.sqrt(share) * prompt + math.sqrt(1 - share) * response


def _jump(rng: np.random.Generator, shape: tuple[int, int], probability: float, size: float) -> FloatArray:
    return size * (rng.random((*shape, 1)) < probability)


SIGMA = 1.195  # skewness (e^{s^2} + 2) sqrt(e^{s^2} - 1) = 11.0
LOGNORMAL_SCALE = 16.7 / math.sqrt(math.exp(SIGMA**2) * (math.exp(SIGMA**2) - 1))
DISTRIBUTIONS = {
    "normal, ICC .8": Distribution(
        lambda rng, shape: 16.7 * _effects(rng, shape, 0.8),
        lambda shift: _normal_capped(shift, 16.7),
    ),
    "2 % catastrophes": Distribution(
        lambda rng, shape: _jump(rng, shape, 0.02, 100.0) + 2.0 * _effects(rng, shape, 0.0),
        lambda shift: 0.98 * _normal_capped(shift, 2.0) + 0.02 * _normal_capped(shift + 100.0, 2.0),
    ),
    "skewed mixture, ICC .74": Distribution(
        lambda rng, shape: _jump(rng, shape, 0.2, 36.0) + 8.54 * _effects(rng, shape, 0.0),
        lambda shift: 0.8 * _normal_capped(shift, 8.54) + 0.2 * _normal_capped(shift + 36.0, 8.54),
    ),
    "log-normal, skew 11": Distribution(
        lambda rng, shape: LOGNORMAL_SCALE * np.exp(SIGMA * _effects(rng, shape, 0.8)),
        lambda shift: _lognormal_capped(shift, LOGNORMAL_SCALE, SIGMA),
    ),
}


def certified(means: FloatArray, *, delta: float) -> dict[str, float]:
    """Return for each bound the share of repetitions that certify the limit from ``means[repetition, prompt]``."""
    bounded = {"cap": CAP, "floor": FLOOR, "delta": delta}
    wealth = betting_log_wealth(means, LIMIT, cap=CAP, delta=delta)
    verdicts = {
        "betting": wealth >= -math.log(delta),
        "clustered-t": clustered_t(means, delta=delta) <= LIMIT,
        "maurer-pontil": maurer_pontil(means, **bounded) <= LIMIT,
        "hoeffding": hoeffding(means, **bounded) <= LIMIT,
    }
    return {name: float(np.mean(verdict)) for name, verdict in verdicts.items()}


def table(
    *, repetitions: int, sizes: tuple[int, ...], offsets: tuple[float, ...], delta: float, seed: int
) -> list[dict[str, object]]:
    """Return one row a (distribution, n, true mean)."""
    rows: list[dict[str, object]] = []
    for index, (name, distribution) in enumerate(DISTRIBUTIONS.items()):
        for n in sizes:
            for offset in offsets:
                rng = np.random.default_rng([seed, index, n, round(1000 * (offset + 100))])
                means = distribution.sample(rng, (repetitions, n), mean=LIMIT + offset)
                rows.append({"costs": name, "n": n, "mean": offset, **certified(means, delta=delta)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--delta", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rows = table(
        repetitions=given.repetitions,
        sizes=(200, 1000),
        offsets=(0.0, -1.0, -2.0, 5.0),
        delta=given.delta,
        seed=given.seed,
    )
    names = ("betting", "clustered-t", "maurer-pontil", "hoeffding")
    print(f"share of {given.repetitions} repetitions that certify limit 0 at delta {given.delta:g}")
    print(f"{'costs':26}{'n':>6}{'mean':>6}" + "".join(f"{name:>15}" for name in names))
    for row in rows:
        shares = "".join(f"{row[name]:>15.4f}" for name in names)
        print(f"{row['costs']:26}{row['n']:>6}{row['mean']:>6g}{shares}")
    error = math.sqrt(given.delta * (1 - given.delta) / given.repetitions)
    worst = max(float(str(row["betting"])) for row in rows if row["mean"] == 0.0)
    print(json.dumps({"worst_false_certification": worst, "allowed": round(given.delta + 3 * error, 4)}))


if __name__ == "__main__":
    main()
