"""Rounds of the dual rules on random finite worlds, through the same ``solve`` as the command line.

Each world has 4 prompts of 2-6 responses with normal scores, beta in .25-1, and limits that bind: they are the costs
of log-uniform multipliers in .1-5. Every policy is trained by the real loss on soft labels, from start 1. Asked for:
lambda within 1 % or 0.01 of the exact one, a Lagrangian gap of at most 1e-3 in normalised scores, and for one limit a
median of at most 7 rounds and a 95th percentile of at most 11.

    python bench/dual_rules.py [--worlds 100] [--rules bracket,newton,projected_newton]
"""

import argparse
import json
import time

import numpy as np

from dualign.maths.exact import log_policy, mean_costs
from dualign.worlds.file import parse_world
from dualign.worlds.solving import SolveSettings, solve

CONSTRAINTS = {"bracket": 1, "newton": 1, "projected_newton": 2}


def world(seed, constraints):
    """Return a random world whose limits all bind."""
    rng = np.random.default_rng(seed)
    names = [f"cost{i}" for i in range(constraints)]
    prompts = [
        {
            "prompt": f"x{j}",
            "weight": rng.uniform(0.5, 2),
            "responses": [
                {
                    "response": f"y{k}",
                    "reference": float(p),
                    "reward": rng.normal(),
                    "costs": {name: rng.normal() for name in names},
                }
                for k, p in enumerate(rng.dirichlet(np.ones(rng.integers(2, 7))) + 1e-6)
            ],
        }
        for j in range(4)
    ]
    raw = {"beta": rng.uniform(0.25, 1), "limits": dict.fromkeys(names, 0.0), "prompts": prompts}
    problem = parse_world(json.dumps(raw), where="world").problem()
    multipliers = np.exp(rng.uniform(np.log(0.1), np.log(5), size=constraints))
    costs = mean_costs(problem, log_policy(problem, multipliers))
    return parse_world(json.dumps(raw | {"limits": dict(zip(names, costs.tolist(), strict=True))}), where="world")


def solved(rule, seed):
    """Return rounds, the error of lambda as a share of what is allowed, the gap in normalised scores, limits met."""
    found = solve(world(seed, CONSTRAINTS[rule]), SolveSettings(dual=rule)).figures
    ours, best = (np.array(list(part["multipliers"].values())) for part in (found, found["optimum"]))
    error = float((np.abs(ours - best) / np.maximum(0.01 * best, 0.01)).max())
    return found["rounds"], error, found["gap"] / found["parameters"]["reward_sd"], found["limits_met"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=100)
    parser.add_argument("--rules", default=",".join(CONSTRAINTS))
    given = parser.parse_args()
    for rule in given.rules.split(","):
        started = time.perf_counter()
        rounds, errors, gaps, met = (
            np.array(part) for part in zip(*(solved(rule, s) for s in range(given.worlds)), strict=True)
        )
        print(
            f"{rule}, {CONSTRAINTS[rule]} limit(s), {given.worlds} worlds: rounds median {np.median(rounds):g}, 95th "
            f"percentile {np.percentile(rounds, 95):g}, most {rounds.max()}; lambda outside 1 % and 0.01 in "
            f"{(errors > 1).sum()}, worst gap {gaps.max():.1e}, limits missed in {(~met.astype(bool)).sum()}; "
            f"{time.perf_counter() - started:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
