"""Robust losses on a small language model, under labels that are drawn once and then partly turned round.

    python bench/robust_losses.py [--seeds 0,1,2] [--out runs/robust-losses]

The model of the assistant world is fitted at the multiplier that is optimal for its learned scores. A row says how far
the policy stays below the Gibbs policy of that multiplier in E[reward - multiplier cost] - beta KL, both enumerated
under the learned scores: what is lost is lost by labels and training alone. An interrupted run goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from methods_on_worlds import FLIPPED, value, with_flips

from dualign.job.demo import Truth, demo_config, learn, make_job
from dualign.job.phases import OpenRun
from dualign.job.search import prepare
from dualign.maths.dual import fixed
from dualign.methods.c_dpo import RECIPES, relabelled
from dualign.methods.options import Settings
from dualign.records import FloatArray
from dualign.runs.journal import open_run


def losses() -> list[str]:
    """Return the losses whose optimum under soft labels is the Gibbs policy, plain DPO first."""
    made = {name: relabelled(np.zeros(1), 1.0, Settings(fixed(np.zeros(1)), np.zeros(1), name)) for name in RECIPES}
    return [name for name, objective in made.items() if not objective.columns]


def shortfalls(seed: int, run: Path) -> FloatArray:
    """Return ``[loss, labels]``: the shortfall under drawn labels, and under drawn and partly turned ones."""
    config = demo_config(seed, "assistant")
    journal = open_run(run, config.model_dump(mode="json"))
    opened = OpenRun(config, journal)
    parts = learn(opened)
    search = prepare(make_job(opened, parts))
    truth = Truth.of(search, parts)
    problem, multipliers = search.problem(), truth.believed.multipliers
    normalised = search.scale.multipliers(multipliers / truth.share)
    best = value(truth.learned, truth.believed.log_probs, multipliers)
    table = np.zeros((len(losses()), 2))
    for row, loss in enumerate(losses()):
        drawn = relabelled(normalised, problem.beta, Settings(fixed(normalised), normalised, loss, "bernoulli"))
        for column, objective in enumerate((drawn, with_flips(drawn))):
            policy = problem.backend.fit(
                problem.groups, objective=objective, reference=problem.reference, start=None, seed=seed,
                name=f"{loss}-{column}",
            )  # fmt: skip
            table[row, column] = best - value(truth.learned, truth.log_probs(policy), multipliers)
            print(f"seed {seed}, {objective.name}: {table[row, column]:.4f}", flush=True)
    return table


def shown(values: FloatArray) -> str:
    """Return mean and standard error over seeds."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{values.mean():.3f} ± {error:.3f}"


def print_table(found: Sequence[FloatArray]) -> None:
    """Print a row a loss; differences from plain DPO are taken seed by seed."""
    print(f"\n| loss | drawn | drawn, {FLIPPED:.0%} turned | turned: minus dpo |\n| --- | ---: | ---: | ---: |")
    table = np.stack(found)
    for row, loss in enumerate(losses()):
        columns = table[:, row, 0], table[:, row, 1], table[:, row, 1] - table[:, 0, 1]
        print(f"| {loss} | {' | '.join(map(shown, columns))} |")


def main() -> None:
    """Print the table over all seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("runs/robust-losses"))
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    print_table([shortfalls(seed, given.out / f"seed-{seed}") for seed in seeds])


if __name__ == "__main__":
    main()
