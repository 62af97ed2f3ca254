"""Every system's parameters, to the target policy and back, and against policies of a small world."""

import json

import numpy as np
import pytest

from command_line import dualign
from dualign.maths.conversion import SYSTEMS, Target, from_target, systems, to_target
from dualign.maths.exact import log_policy
from dualign.worlds.solving import SolveSettings, solve
from small_worlds import small_world


@pytest.mark.parametrize("row", SYSTEMS, ids=lambda row: row.names[0])
def test_round_trip(row) -> None:
    for target in (Target(0.7, 0.3), Target(4.0, 0.02)):
        found = to_target(row, from_target(row, target))
        assert (found.multiplier, found.beta) == pytest.approx((target.multiplier, target.beta), rel=1e-12)


def test_known_values() -> None:
    known = systems()
    assert to_target(known["safe-rlhf"], {"lambda": 0.5, "kl": 0.1}) == Target(0.5, pytest.approx(0.15))
    assert to_target(known["sacpo"], {"beta": 0.1, "beta_prime": 0.025}) == Target(pytest.approx(4.0), 0.1)
    assert to_target(known["modpo"], {"w0": 0.5, "w1": 0.5, "beta": 0.1}) == Target(1.0, 0.2)
    assert to_target(known["c-dpo"], {"lambda": 1.0, "beta": 0.1, "tau": 2.0}) == Target(1.0, 0.2)


def test_what_a_method_calls_its_parameters_means_its_policy() -> None:
    world, multiplier = small_world(2, beta=0.5), np.array([0.8])
    exact = log_policy(world.problem(), multiplier)
    for name in ("sacpo", "modpo"):
        found = solve(world, SolveSettings(method=name, multipliers=multiplier))
        stated = {k: v for k, v in found.figures["parameters"].items() if k in systems()[name].keys}
        target = to_target(systems()[name], stated)
        assert (target.multiplier, target.beta) == pytest.approx((0.8, 0.5))
        np.testing.assert_allclose(np.exp(found.log_probs), np.exp(exact), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("safe-rlhf", {"lambda": 1.0}, "kl is missing"), ("safe-rlhf", {"lambda": -1.0, "kl": 0.1}, "0 or more"),
        ("sacpo", {"beta": 0.1, "beta_prime": 0.0}, "above 0"), ("c-dpo", {"lambda": 1, "beta": 1, "x": 1}, "unknown"),
    ],
)  # fmt: skip
def test_what_means_no_policy(name: str, given: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        to_target(systems()[name], given)


def test_on_the_command_line() -> None:
    answer = dualign("methods", "--equivalent-to", "safe-rlhf:lambda=0.5,kl=0.1", "--json")
    found = json.loads(answer.out)
    assert found["multiplier"] == 0.5 and found["beta"] == pytest.approx(0.15)
    assert found["systems"]["sacpo"] == {"beta": pytest.approx(0.15), "beta_prime": pytest.approx(0.3)}
    assert found["systems"]["c-dpo"] == {"lambda": 0.5, "beta": pytest.approx(0.15), "tau": 1}
    assert set(found["systems"]) == set(found["notes"]) == set(systems())
    assert "C-DPO's terms" in dualign("methods", "--equivalent-to", "safe-rlhf:lambda=0.5,kl=0.1").out
    for text, said in (("safe-rhlf:lambda=1", "safe-rlhf"), ("safedpo:beta=1", "forbids"), ("sacpo:beta=x", "NUMBER")):
        dualign("methods", "--equivalent-to", text).refused(2, said)
