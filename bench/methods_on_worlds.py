"""Every method on the same random finite worlds, against the exact optimum; then the robust losses under bad labels.

    python bench/methods_on_worlds.py [--worlds 20]

Worlds have 4 prompts of 2 to 6 responses, one limit, beta 0.5. "regret" is optimum - objective among worlds whose limit
was met, in raw reward; label runs are at the exact multiplier and report E[reward - multiplier cost] - beta KL below
that of the Gibbs policy.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np
import torch

from dualign.maths.dual import fixed
from dualign.maths.exact import FiniteProblem, expectations, log_policy, mean_costs, optimum
from dualign.methods.c_dpo import RECIPES, relabelled
from dualign.methods.options import Settings
from dualign.methods.table import METHODS
from dualign.protocols import Objective
from dualign.records import FloatArray
from dualign.worlds.file import World, parse_world
from dualign.worlds.solving import SolveSettings, solve
from dualign.worlds.tabular import TabularBackend

FLIPPED = 0.2


def random_world(seed: int, *, prompts: int = 4) -> World:
    """Return a world whose limit is met exactly by a random multiplier between 0.1 and 5."""
    rng = np.random.default_rng(seed)
    rows = []
    for j in range(prompts):
        reference = rng.dirichlet(np.ones(int(rng.integers(2, 7)))) + 1e-6
        rows.append(
            {
                "prompt": f"x{j}",
                "responses": [
                    {"response": f"y{k}", "reference": float(p), "reward": rng.normal(), "costs": {"c": rng.normal()}}
                    for k, p in enumerate(reference)
                ],
            }
        )
    raw = {"beta": 0.5, "limits": {"c": 0.0}, "prompts": rows}
    problem = parse_world(json.dumps(raw), where="world").problem()
    multiplier = np.exp(rng.uniform(np.log(0.1), np.log(5), size=1))
    raw["limits"] = {"c": float(mean_costs(problem, log_policy(problem, multiplier))[0])}
    return parse_world(json.dumps(raw), where="world")


def all_methods(worlds: list[World]) -> None:
    """Print a row a method, as docs/methods.md has them."""
    print("| method | source | multiplier | limit met | regret | policies, median |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    for name, method in METHODS.items():
        found = [solve(world, SolveSettings(method=name)).figures for world in worlds]
        met = [f for f in found if f["limits_met"]]
        regret = [f["optimum"]["objective"] - f["objective"] for f in met]
        shown = f"{np.mean(regret):.4f}" if met else "–"
        rounds = np.median([f["rounds"] for f in found])
        called = f"`{method.name}`{' (reconstruction)' if method.reconstruction else ''}"
        row = called, method.source, method.weight, f"{len(met)} of {len(found)}", shown, f"{rounds:g}"
        print(f"| {' | '.join(row)} |", flush=True)


def with_flips(objective: Objective) -> Objective:
    """Return ``objective`` whose labels are drawn, and then each turned round with probability ``FLIPPED``."""

    def labels(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        won = objective.labels(logits, generator)
        turned = torch.rand(logits.shape, generator=generator, dtype=logits.dtype) < FLIPPED
        return torch.where(turned, 1 - won, won)

    return replace(objective, labels=labels, name=f"{objective.name}-flipped")


def shortfall(world: World, loss: str, *, flips: bool, seed: int) -> float:
    """Return how far the policy of drawn labels stays below the Gibbs policy at the exact multiplier."""
    problem: FiniteProblem = world.problem()
    multiplier = optimum(problem).multipliers
    backend = TabularBackend(world)
    objective = relabelled(multiplier, problem.beta, Settings(fixed(multiplier), multiplier, loss, "bernoulli"))
    asked = with_flips(objective) if flips else objective
    policy = backend.fit(
        world.groups(), objective=asked, reference=backend.reference, start=None, seed=seed, name="policy"
    )
    return value(problem, log_policy(problem, multiplier), multiplier) - value(problem, policy.state, multiplier)


def value(problem: FiniteProblem, log_probs: FloatArray, multiplier: FloatArray) -> float:
    """Return E[reward - multiplier cost] - beta KL."""
    found = expectations(problem, log_probs)
    return float(found.reward - found.costs @ multiplier - problem.beta * found.kl)


def bad_labels(worlds: list[World]) -> None:
    """Print a row a loss: its shortfall under drawn labels and under drawn and partly turned ones."""
    heads = "loss", "drawn labels", f"drawn, {FLIPPED:.0%} turned round", "turned: minus dpo"
    print(f"\n| {' | '.join(heads)} |\n| --- | ---: | ---: | ---: |")
    plain: dict[bool, FloatArray] = {}
    for loss in RECIPES:
        if relabelled(np.zeros(1), 1.0, Settings(fixed(np.zeros(1)), np.zeros(1), loss)).columns:
            continue  # its optimum is not the Gibbs policy that the shortfall is taken from
        found = {
            flips: np.array([shortfall(world, loss, flips=flips, seed=k) for k, world in enumerate(worlds)])
            for flips in (False, True)
        }
        plain = plain or found
        gap = found[True] - plain[True]
        columns = [f"{v.mean():.3f} ± {v.std(ddof=1) / np.sqrt(len(v)):.3f}" for v in (found[False], found[True], gap)]
        print(f"| {loss} | {' | '.join(columns)} |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=20)
    count = parser.parse_args().worlds
    all_methods([random_world(seed) for seed in range(count)])
    bad_labels([random_world(seed, prompts=12) for seed in range(count)])


if __name__ == "__main__":
    main()
