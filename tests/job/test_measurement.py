"""Figures of a policy, against numbers worked out by hand."""

import numpy as np
import pytest

from dualign.job.measurement import Scored, evaluate, gibbs_slope, slice_of, transformed
from dualign.maths.functionals import parse
from dualign.records import Constraint, Prompt, Response

RISKY, BENIGN = {"label": "risky"}, {"label": "benign"}
PROMPTS = tuple(Prompt(f"x{k}", RISKY if k < 3 else BENIGN) for k in range(4))
HARM = np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
"""Prompt means 0.5, 1, 0 on the risky slice: mean 0.5, SD 0.5, error 0.5 / sqrt 3."""


def made(costs: np.ndarray) -> Scored:
    responses = tuple(tuple(Response(f"r{p}{k}", (5,) * (k + 1), -1.5, k == 0) for k in range(2)) for p in range(4))
    reward = np.array([[1.0, 3.0], [2.0, 2.0], [0.0, 4.0], [6.0, 6.0]])
    return Scored(PROMPTS, responses, reward, costs[..., None], np.array([[0.1, 0.3]] * 4))


def constraint(**changes: object) -> Constraint:
    return Constraint(**({"name": "harm", "limit": 0.3, "where": RISKY} | changes))  # type: ignore[arg-type]


def test_a_limit_on_a_slice_is_measured_on_its_prompts_and_the_reward_on_all() -> None:
    found = evaluate(made(HARM), [constraint()], [parse("mean")], beta=0.5)
    assert found.costs == pytest.approx([0.5])
    assert found.cost_errors == pytest.approx([0.5 / np.sqrt(3)])
    assert found.cost_spreads == pytest.approx([0.5])
    assert found.reward == pytest.approx((2 + 2 + 2 + 6) / 4)
    assert found.reward_error == pytest.approx(2.0 / np.sqrt(4))
    assert found.kl == pytest.approx(0.2)
    assert found.n_prompts == 4
    assert found.extra == {"tokens": 1.5, "finished": 0.5}


def test_the_slope_is_the_covariance_within_prompts_over_beta() -> None:
    # the only prompt of three whose two costs differ: variance 0.5 with ddof 1
    slices = [slice_of(PROMPTS, RISKY)]
    assert gibbs_slope(HARM[..., None], slices, 0.5) == pytest.approx(np.array([[-(0.5 / 3) / 0.5]]))
    assert gibbs_slope(HARM[:, :1, None], slices, 0.5) is None


def test_the_slope_of_two_limits_is_taken_over_the_slice_of_the_row() -> None:
    first = np.array([[0.0, 2.0], [0.0, 0.0]])
    second = np.array([[1.0, 3.0], [0.0, 4.0]])
    values = np.stack([first, second], axis=-1)
    slope = gibbs_slope(values, [np.array([0]), np.array([0, 1])], 1.0)
    # prompt 0: both variances 2, covariance 2; prompt 1: variances 0 and 8
    assert slope == pytest.approx(-np.array([[2.0, 2.0], [1.0, 5.0]]))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("mean", [[0.0, 1.0], [1.0, 1.0]]),
        ("rate", [[0.0, 1.0], [1.0, 1.0]]),
        # threshold 0.5, level 0.75: 0.5 + max(c - 0.5, 0) * 4
        ("cvar:0.75:0.5", [[0.5, 2.5], [2.5, 2.5]]),
        # the reference's means on the two prompts are 0.25 and 1.5
        ("relative", [[-0.25, 0.75], [-0.5, -0.5]]),
    ],
)
def test_each_functional_is_a_mean_of_transformed_costs(spec: str, expected: list[list[float]]) -> None:
    values = transformed(HARM[:2, :, None], [parse(spec)], np.array([[0.25], [1.5]]))
    assert values[..., 0] == pytest.approx(np.array(expected))


def test_a_tail_is_refitted_on_the_policy_that_is_measured() -> None:
    # six costs of the slice, three of them 1: the median is 0, CVaR is the mean of the worst half
    found = evaluate(made(HARM), [constraint(functional="cvar:0.5")], [parse("cvar:0.5")], beta=1.0)
    assert found.costs == pytest.approx([1.0])


def test_a_tail_is_that_of_the_slice() -> None:
    # six costs of the slice, the worst half 7, 9 and 11; with the zeros outside the threshold would be lower
    costs = np.array([[1.0, 3.0], [5.0, 7.0], [9.0, 11.0], [0.0, 0.0]])
    found = evaluate(made(costs), [constraint(functional="cvar:0.5")], [parse("cvar:0.5")], beta=1.0)
    assert found.costs == pytest.approx([9.0])


def test_a_part_of_the_prompts_keeps_its_own_rows() -> None:
    kept = made(HARM).take([2, 0])
    assert [prompt.text for prompt in kept.prompts] == ["x2", "x0"]
    assert kept.costs[:, :, 0].tolist() == [[0.0, 0.0], [0.0, 1.0]]
    assert [group.reward.tolist() for group in kept.groups()] == [[0.0, 4.0], [1.0, 3.0]]
