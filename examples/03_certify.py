"""Certify a policy from held-out costs, with nothing but numpy. Run: ``python examples/03_certify.py`` (a second).

The same test is ``dualign certify costs.jsonl --limit 0 --cap 50`` on a file of rows with prompt and cost.
"""

import numpy as np

from dualign.certificate.certify import certify
from dualign.certificate.claim import Requirement, Terms
from dualign.certificate.held_out import Costs


def held_out_costs(mean: float, seed: int) -> Costs:
    """Return made-up costs: 800 prompts, two responses each, most of the variance between prompts."""
    rng = np.random.default_rng(seed)
    prompt_effect = 13.0 * rng.standard_normal((800, 1))
    costs = mean + prompt_effect + 7.0 * rng.standard_normal((800, 2))
    return Costs([f"prompt {j}" for j in range(800) for _ in range(2)], costs.ravel())


def main() -> None:
    """Test a ladder of three policies, safest first, and print what was found."""
    # Everything in the terms is fixed before a cost is seen: the claim's words follow from it.
    terms = Terms({"harm": Requirement(limit=0.0, cap=50.0, scorer="harm-scorer@1")}, delta=0.05)
    ladder = {
        "lambda-4.0": {"harm": held_out_costs(-6.0, seed=1)},
        "lambda-2.0": {"harm": held_out_costs(-3.0, seed=2)},
        "lambda-1.0": {"harm": held_out_costs(-0.3, seed=3)},
    }
    certificate = certify(ladder, terms)
    print(certificate.figures["claim"], "\n")
    for row in certificate.figures["ladder"]:
        print(f"{row['policy']}: {row['verdict']:14} estimate {row['estimate']:6.2f}, bound {row['upper_bound']:6.2f}")
    print(f"\n{certificate.verdict}: {certificate.selected}")


if __name__ == "__main__":
    main()
