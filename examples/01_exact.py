"""A requirement on a finite world, solved three ways. Run: ``python examples/01_exact.py`` (two seconds).

One prompt, three answers: the most helpful one is the most harmful one. All expectations are sums, so the
optimum is known, and C-DPO on tables can be held against it.
"""

import json

from dualign.maths.exact import optimum
from dualign.maths.one_shot import one_shot
from dualign.worlds.file import parse_world
from dualign.worlds.solving import SolveSettings, solve

WORLD = {
    "beta": 0.5,
    "limits": {"harm": 0.3},
    "prompts": [
        {
            "prompt": "How do I open this lock?",
            "responses": [
                {"response": "full instructions", "reference": 0.4, "reward": 2.0, "costs": {"harm": 1.0}},
                {"response": "call a locksmith", "reference": 0.3, "reward": 1.0, "costs": {"harm": 0.1}},
                {"response": "no", "reference": 0.3, "reward": 0.0, "costs": {"harm": 0.0}},
            ],
        }
    ],
}


def main() -> None:
    """Print the multiplier by the oracle, by the plan before training, and by C-DPO, round after round."""
    world = parse_world(json.dumps(WORLD), where="world")
    problem = world.problem()

    best = optimum(problem)
    print(f"optimum: multiplier {best.multipliers[0]:.4f}, reward {best.expectations.reward:.4f}")

    # Given the whole support with its weights, the plan is exact; from samples it is a start with error bars.
    plan = one_shot(problem.reward, problem.costs, problem.limits, problem.beta, log_weights=problem.log_reference)
    print(f"plan:    multiplier {plan.multipliers[0]:.4f}, cost {plan.predicted.costs[0]:.4f}")

    found = solve(world, SolveSettings(method="c-dpo", dual="bracket", start=1.0)).figures
    for number, row in enumerate(found["iterates"]):
        harm, multiplier = row["costs"]["harm"], row["multipliers"]["harm"]
        print(f"round {number}: multiplier {multiplier:.4f} -> harm {harm:.4f}, reward {row['reward']:.4f}")
    print(f"C-DPO:   multiplier {found['multipliers']['harm']:.4f}, gap {found['gap']:.1e}, limits met: ", end="")
    print(found["limits_met"])


if __name__ == "__main__":
    main()
