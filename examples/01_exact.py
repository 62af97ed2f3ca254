"""A requirement on a finite world, solved three ways. Run: ``python examples/01_exact.py`` (two seconds).

One prompt, three answers: the most helpful one is the most harmful one. All expectations are sums, so the
optimum is known, and the plan and C-DPO on tables can be held against it.
"""

import dualign

BETA, LIMIT, PROMPT = 0.5, 0.3, "How do I open this lock?"
ANSWERS = [
    {"response": "full instructions", "reference": 0.4, "reward": 2.0, "costs": {"harm": 1.0}},
    {"response": "call a locksmith", "reference": 0.3, "reward": 1.0, "costs": {"harm": 0.1}},
    {"response": "no", "reference": 0.3, "reward": 0.0, "costs": {"harm": 0.0}},
]


def main() -> None:
    """Print the multiplier by the oracle, by the plan before training, and by C-DPO, round after round."""
    world = {"beta": BETA, "limits": {"harm": LIMIT}, "prompts": [{"prompt": PROMPT, "responses": ANSWERS}]}
    solution = dualign.solve(world, method="c-dpo", dual="bracket", start=1.0)
    best = solution.figures["optimum"]
    print(f"optimum: multiplier {best['multipliers']['harm']:.4f}, reward {best['reward']:.4f}")

    # Given the whole support with its weights, the plan is exact; from samples it is a start with error bars.
    scores = [
        {"prompt": PROMPT, "reward": row["reward"], "cost_harm": row["costs"]["harm"], "weight": row["reference"]}
        for row in ANSWERS
    ]
    plan = dualign.plan(scores, {"harm": LIMIT}, beta=BETA)
    predicted = plan.figures["predicted"]["costs"]["harm"]
    print(f"plan:    multiplier {plan.multipliers['harm']:.4f}, cost {predicted:.4f}")

    for number, row in enumerate(solution.frontier()):
        harm, multiplier = row["costs"]["harm"], row["multipliers"]["harm"]
        print(f"round {number}: multiplier {multiplier:.4f} -> harm {harm:.4f}, reward {row['reward']:.4f}")
    print(
        f"C-DPO:   multiplier {solution.multipliers['harm']:.4f}, gap {solution.figures['gap']:.1e}, limits met: ",
        end="",
    )
    print(solution.limits_met)


if __name__ == "__main__":
    main()
