"""Random finite worlds for tests; ``pythonpath = ["tests"]`` lets every test import them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dualign.maths.exact import log_policy, mean_costs
from dualign.maths.losses import LABELS, LOSSES
from dualign.protocols import Objective
from dualign.worlds.file import World, parse_world


def raw_world(seed: int, *, constraints: int = 1, beta: float = 0.25, spread: float = 1.0) -> dict[str, Any]:
    """Return a world as its JSON object: 4 prompts x 2 to 6 responses, limits 0."""
    rng = np.random.default_rng(seed)
    names = [f"cost{i}" for i in range(constraints)]
    prompts = []
    for j in range(4):
        reference = rng.dirichlet(np.ones(int(rng.integers(2, 7)))) + 1e-6
        responses = [
            {
                "response": f"y{k}",
                "reference": float(p),
                "reward": float(spread * rng.normal()),
                "costs": {name: float(spread * rng.normal()) for name in names},
            }
            for k, p in enumerate(reference)
        ]
        prompts.append({"prompt": f"x{j}", "weight": float(rng.uniform(0.5, 2)), "responses": responses})
    return {"beta": beta, "limits": dict.fromkeys(names, 0.0), "prompts": prompts}


def small_world(seed: int, *, constraints: int = 1, beta: float = 0.25, spread: float = 1.0) -> World:
    """Return a world whose limits are met exactly by random multipliers between 0.1 and 5."""
    raw = raw_world(seed, constraints=constraints, beta=beta, spread=spread)
    world = parse_world(json.dumps(raw), where="world")
    multipliers = np.exp(np.random.default_rng([seed, 1]).uniform(np.log(0.1), np.log(5), size=constraints))
    problem = world.problem()
    limits = mean_costs(problem, log_policy(problem, multipliers))
    raw["limits"] = dict(zip(raw["limits"], map(float, limits), strict=True))
    return parse_world(json.dumps(raw), where="world")


def write_world(folder: Path, raw: object) -> Path:
    """Return the path of a world file that holds ``raw``."""
    path = folder / "world.json"
    path.write_text(raw if isinstance(raw, str) else json.dumps(raw))
    return path


def objective(
    multipliers: object, *, beta: float, labels: str = "soft", loss: str = "dpo", temperature: float = 1.0
) -> Objective:
    """Return a relabelled objective whose loss has the coefficient ``beta``."""
    pairwise = LOSSES[loss]
    return Objective(
        loss=lambda preferred, other: pairwise(preferred.log_ratio, other.log_ratio, beta=beta),
        labels=LABELS[labels],
        multipliers=np.atleast_1d(np.asarray(multipliers, dtype=np.float64)),
        beta=beta,
        temperature=temperature,
    )
