"""Certify a policy from held-out costs, with nothing but numpy. Run: ``python examples/03_certify.py`` (a second).

The same test is ``dualign certify costs.jsonl --limit harm=0 --cap harm=50`` on a file of the same rows.
"""

import numpy as np

import dualign


def held_out_costs(policy: str, mean: float, seed: int) -> list[dict[str, object]]:
    """Return made-up costs: 800 prompts, two responses each, most of the variance between prompts."""
    rng = np.random.default_rng(seed)
    costs = mean + 13.0 * rng.standard_normal((800, 1)) + 7.0 * rng.standard_normal((800, 2))
    return [{"prompt": f"prompt {j}", "policy": policy, "cost_harm": cost} for j in range(800) for cost in costs[j]]


def main() -> None:
    """Test a ladder of three policies, safest first, and print what was found."""
    ladder = {"lambda-4.0": -6.0, "lambda-2.0": -3.0, "lambda-1.0": -0.3}
    rows = [row for seed, (policy, mean) in enumerate(ladder.items(), 1) for row in held_out_costs(policy, mean, seed)]
    # Everything beside the rows is fixed before a cost is seen: the claim's words follow from it.
    certificate = dualign.certify(rows, limit={"harm": 0}, cap={"harm": 50}, scorer="harm-scorer@1")
    print(certificate.figures["claim"], "\n")
    for row in certificate.figures["ladder"]:
        print(f"{row['policy']}: {row['verdict']:14} estimate {row['estimate']:6.2f}, bound {row['upper_bound']:6.2f}")
    print(f"\n{certificate.verdict}: {certificate.selected}")


if __name__ == "__main__":
    main()
