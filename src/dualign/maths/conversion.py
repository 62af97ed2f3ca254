"""One policy in the terms of many systems: ``pi ~ reference exp((reward - multiplier cost) / beta)`` is the currency.

A system's parameters and the pair (multiplier, beta) are turned into each other by the two functions of its row. Where
a system has more parameters than the policy has degrees of freedom, the rest keeps its default on the way back. Scores
are in one scale everywhere: reward and cost in the logits of the labels they make.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Parameters = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Target:
    """The Gibbs policy that is meant."""

    multiplier: float
    """Cost's price in units of reward; of one constraint."""
    beta: float
    """KL strength."""


@dataclass(frozen=True, slots=True)
class System:
    """One row: a system's parameters and what they mean in C-DPO's."""

    names: tuple[str, ...]
    """Systems that share the row; they are looked up by any of them."""
    keys: tuple[str, ...]
    """Parameters that must be given."""
    to_target: Callable[[Parameters], Target]
    from_target: Callable[[Target, Parameters], Parameters]
    """(target, parameters that are free) -> all parameters."""
    free: Parameters
    """Parameters that the target does not fix, with the value they have unless another is given."""
    note: str = ""


def _over(numerator: float, denominator: float) -> float:
    """Return the quotient; infinity where a step with multiplier 0 would need an infinite coefficient."""
    return numerator / denominator if denominator else math.inf


def _identical(names: tuple[str, ...], beta: str, note: str) -> System:
    """Return the row of systems whose multiplier and beta are C-DPO's, the latter under a name of its own."""
    return System(
        names,
        ("lambda", beta),
        lambda given: Target(given["lambda"], given[beta]),
        lambda target, _: {"lambda": target.multiplier, beta: target.beta},
        {},
        note,
    )


SYSTEMS: tuple[System, ...] = (
    System(
        ("c-dpo", "fixed"),
        ("lambda", "beta"),
        lambda given: Target(given["lambda"], given["tau"] * given["beta"]),
        lambda target, free: {"lambda": target.multiplier, "beta": target.beta / free["tau"]},
        {"tau": 1.0},
        "soft labels at temperature tau, DPO coefficient beta",
    ),
    System(
        ("normalised",),
        ("lambda", "beta"),
        lambda given: Target(
            given["lambda"] * given["reward_sd"] / given["cost_sd"], given["beta"] * given["reward_sd"]
        ),
        lambda target, free: {
            "lambda": target.multiplier * free["cost_sd"] / free["reward_sd"],
            "beta": target.beta / free["reward_sd"],
        },
        {"reward_sd": 1.0, "cost_sd": 1.0},
        "scores divided by their standard deviations",
    ),
    System(
        ("safe-rlhf", "ppo-lag"),
        ("lambda", "kl"),
        lambda given: Target(given["lambda"], given["kl"] * (1 + given["lambda"])),
        lambda target, _: {"lambda": target.multiplier, "kl": target.beta / (1 + target.multiplier)},
        {},
        "the advantage is divided by 1 + lambda, the KL term is not",
    ),
    _identical(("reward-shaping",), "kl", "PPO on reward - lambda cost"),
    _identical(("hc-rlhf", "reinforce-lag"), "kl", "lambda is the price of the inflated cost"),
    _identical(("mocan", "caid"), "beta", "lambda and beta are C-DPO's"),
    _identical(("pecan",), "beta_p", "lambda on log-ratios of two DPO policies at beta_p; labels with beta_p"),
    System(
        ("pecan-released",),
        ("lambda", "beta_p", "beta"),
        lambda given: Target(given["lambda"], given["beta_p"] * given["beta"]),
        lambda target, free: {"lambda": target.multiplier, "beta_p": target.beta / free["beta"]},
        {"beta": 0.1},
        "labels without beta_p, DPO at beta",
    ),
    System(
        ("sacpo", "pd-dpo"),
        ("beta", "beta_prime"),
        lambda given: Target(_over(given["beta"], given["beta_prime"]), given["beta"]),
        lambda target, _: {"beta": target.beta, "beta_prime": _over(target.beta, target.multiplier)},
        {},
        "DPO at beta, then DPO on safety from there at beta_prime",
    ),
    System(
        ("p-sacpo",),
        ("beta", "beta_prime", "q"),
        lambda given: Target(given["q"] * _over(given["beta"], given["beta_prime"]), given["beta"]),
        lambda target, free: {"beta": target.beta, "beta_prime": _over(free["q"] * target.beta, target.multiplier)},
        {"q": 0.5},
        "share q of SACPO's policy in the logits, 1 - q of its first step; exact in logits, not in weights",
    ),
    System(
        ("modpo",),
        ("w0", "w1", "beta"),
        lambda given: Target(_over(given["w1"], given["w0"]), _over(given["beta"], given["w0"])),
        lambda target, _: {
            "w0": 1 / (1 + target.multiplier),
            "w1": target.multiplier / (1 + target.multiplier),
            "beta": target.beta / (1 + target.multiplier),
        },
        {},
        "weights that sum to 1",
    ),
    _identical(("repo-dpo",), "beta", "of another cost: max(cost, 0)"),
)
"""The rows; the order is that of the printed table."""

WITHOUT: Mapping[str, str] = {
    "safedpo": "it forbids unsafe responses: an infinite multiplier on a 0/1 cost",
    "dpo": "it has no multiplier",
    "apo": "it has no multiplier",
    "bfpo": "it has no multiplier",
    "simpo": "its policy knows no reference",
    "b-dpo": "its policy has no closed form",
    "wdpo": "it has no multiplier",
    "kldpo": "it has no multiplier of its own",
    "dr-dpo": "it has no multiplier of its own",
    "best-of-n": "its policy is no Gibbs policy",
}
"""Systems with no finite (multiplier, beta), and why."""


def systems() -> Mapping[str, System]:
    """Return name -> row, every name of every row."""
    return {name: row for row in SYSTEMS for name in row.names}


def to_target(system: System, given: Parameters) -> Target:
    """Return the policy that a system's parameters mean.

    Raises:
        ValueError: a parameter that is missing, unknown or out of range; or no finite multiplier and positive beta.
    """
    known = {*system.keys, *system.free}
    name = system.names[0]
    for key in [*given, *system.keys]:
        if key not in known:
            raise ValueError(f"{name}: unknown parameter {key!r}; known: {', '.join(sorted(known))}")
        if key not in given and key not in system.free:
            raise ValueError(f"{name}: {key} is missing; needs {', '.join(system.keys)}")
    for key, value in given.items():
        least = "0 or more" if key in ("lambda", "q", "w1") else "above 0"
        if not (value >= 0 if least == "0 or more" else value > 0):
            raise ValueError(f"{name}: {key} must be {least}, got {value}")
        if key == "q" and value > 1:
            raise ValueError(f"{name}: q is a share of 1 at most, got {value}")
    target = system.to_target({**system.free, **given})
    if not (math.isfinite(target.multiplier) and 0 < target.beta < math.inf):
        raise ValueError(f"{name}: {dict(given)} means multiplier {target.multiplier} and beta {target.beta}")
    return target


def from_target(system: System, target: Target, free: Parameters | None = None) -> Parameters:
    """Return a system's parameters for a policy; ``free`` replaces the values of those that the policy leaves open.

    ``beta_prime`` is infinite at multiplier 0, where the second of two steps is left out.
    """
    chosen = {**system.free, **(free or {})}
    return {**system.from_target(target, chosen), **chosen}
