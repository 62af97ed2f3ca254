"""The figures of a policy by hand: clustered errors, slices, covariance within prompts, units, ladder order."""

from pathlib import Path

import numpy as np
import pytest

from dualign.job.measurement import (
    Scored,
    clustered,
    evaluate,
    from_columns,
    gibbs_slope,
    normalised,
    to_columns,
)
from dualign.job.results import comparisons, run_job
from dualign.job.search import prepare, rounds, tune_prompts
from dualign.job.verdict import ladder, limits_met, preferred, safety
from dualign.maths.functionals import parse
from dualign.maths.preference import Scale
from dualign.records import Constraint, Evaluation, Iterate, Prompt, Response
from dualign.runs.store import read_json
from gibbs_jobs import gibbs_config, gibbs_job

RISKY = Prompt("one", {"label": "risky"}), Prompt("two", {"label": "risky"})
PROMPTS = (*RISKY, Prompt("three", {"label": "benign"}))


def three_prompts() -> Scored:
    """Return two risky prompts and a benign one, two responses each; the cost is 0 outside the slice."""
    costs = np.array([[1.0, 3.0], [0.0, 0.0], [0.0, 0.0]])[:, :, None]
    row = (Response("a", (4, 2), -1.0), Response("b", (4,), -2.0, finished=False))
    return Scored(PROMPTS, (row, row, row), np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 5.0]]), costs, np.full((3, 2), 0.5))


def test_evaluation_by_hand() -> None:
    constraint = Constraint("harm", 0.5, where={"label": "risky"})
    found = evaluate(three_prompts(), [constraint], [parse("mean")], beta=0.5)
    # prompt means of the cost are 2 and 0: mean 1, SD sqrt(2), error sqrt(2)/sqrt(2)
    assert found.costs[0] == 1 and found.cost_spreads[0] == pytest.approx(2**0.5)
    assert found.cost_errors[0] == pytest.approx(1)
    assert found.reward == pytest.approx((1.5 + 3.5 + 5) / 3)
    assert found.kl == 0.5 and found.kl_error == 0
    assert found.extra == {"tokens": 1.5, "finished": 0.5}
    # variances within the slice's prompts are 2 and 0: mean 1, over beta
    assert found.slope is not None and found.slope[0, 0] == pytest.approx(-2)


def test_functionals_are_taken_of_single_responses() -> None:
    constraint = Constraint("harm", 0.5, where={"label": "risky"})
    rate = evaluate(three_prompts(), [constraint], [parse("rate")], beta=1.0)
    assert rate.costs[0] == 0.5  # both of one prompt, none of the other
    baseline = np.array([[1.0], [1.0], [0.0]])
    relative = evaluate(three_prompts(), [constraint], [parse("relative")], beta=1.0, baseline=baseline)
    assert relative.costs[0] == 0  # +1 and -1
    tail = evaluate(three_prompts(), [constraint], [parse("cvar:0.5")], beta=1.0)
    assert tail.costs[0] == 2  # the worse half: 1 and 3


def test_one_prompt_is_infinite_doubt() -> None:
    assert clustered(np.array([3.0])) == (3.0, np.inf, np.inf)
    assert np.isnan(clustered(np.array([]))[0])


def test_one_response_has_no_slope() -> None:
    assert gibbs_slope(np.zeros((4, 1, 1)), [np.arange(4)], 1.0) is None


def test_units_scale_and_the_slope_with_them() -> None:
    found = evaluate(three_prompts(), [Constraint("harm", 0.5)], [parse("mean")], beta=0.5)
    small = normalised(found, Scale(reward_sd=2.0, cost_sds=np.array([4.0])))
    assert small.reward == found.reward / 2 and small.costs[0] == found.costs[0] / 4
    assert found.slope is not None and small.slope is not None
    # d(c / 4) / d(lambda * 4 / 2)
    assert small.slope[0, 0] == pytest.approx(found.slope[0, 0] * 2 / 16)


def test_columns_round_trip() -> None:
    made = three_prompts()
    again = from_columns(to_columns(made, ["harm"]), PROMPTS, ["harm"])
    assert again.responses == made.responses
    for name in ("reward", "costs", "log_ratio"):
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))


def iterate(name: int, reward: float, cost: float, error: float = 0.1) -> Iterate:
    one = np.array([cost])
    made = Evaluation(reward, 0.0, one, np.array([error]), np.array([1.0]), 0.0, 0.0, 10)
    return Iterate(name, np.array([float(name)]), made, f"{name:02d}")


def test_preferred_is_the_best_reward_whose_limit_holds_with_its_error() -> None:
    limits = np.array([1.0])
    broken, near, safe, safest = iterate(0, 9, 2.0), iterate(1, 5, 0.9), iterate(2, 4, 0.8), iterate(3, 1, 0.2)
    assert not limits_met(near.evaluation, limits)  # 0.9 + 1.645 * 0.1 > 1
    assert preferred([broken, near, safe, safest], limits) is safe
    assert preferred([broken, near], limits) is near  # none holds: the closest
    order = ladder([broken, near, safe, safest], limits, rungs=2)
    assert order == [safest, safe] and safety(order[0].evaluation, limits) < safety(order[1].evaluation, limits)
    assert ladder([broken, near, safe, safest], limits, rungs=1) == [safe]


def test_paired_differences_by_slice() -> None:
    table = {
        "reference": {"reward": np.array([0.0, 0.0, 7.0]), "cost": np.array([1.0, 3.0, np.nan])},
        "selected": {"reward": np.array([1.0, 3.0, 7.0]), "cost": np.array([0.0, 2.0, np.nan])},
    }
    rows = {(row["slice"], row["metric"]): row for row in comparisons(PROMPTS, table)}
    assert ("benign", "cost") not in rows and ("benign", "reward") not in rows  # NaN; the same number everywhere
    reward = rows["risky", "reward"]
    assert reward["difference"] == 2 and reward["n"] == 2
    assert reward["high"] - 2 == pytest.approx(12.706 * 1.0, rel=1e-3)  # t of one degree of freedom, error 1
    assert rows["risky", "cost"]["difference"] == -1


HARM = {"name": "harm", "limit": 0.4, "cap": 1.0, "where": {"label": "risky"}}


def test_rounds_aim_below_the_limit_by_the_margin(tmp_path: Path) -> None:
    job = gibbs_job(tmp_path / "run", gibbs_config([HARM], run={"seed": 1}))
    search = prepare(job)
    assert {prompt.columns["label"] for prompt in tune_prompts(job)} == {"risky"}
    found = [one.normalised for one in rounds(search, np.array([1.0]))]
    assert not found[0].multipliers.any()
    last = found[-1].evaluation
    aim = search.limits / search.scale.cost_sds - search.margin(last)
    assert np.all(search.margin(last) > 0)
    assert abs(last.costs[0] - aim[0]) <= max(1e-3, last.cost_errors[0])


def test_a_job_on_the_exact_backend_is_certified_and_another_scorer_pays_for_its_opening(tmp_path: Path) -> None:
    config = gibbs_config([HARM], run={"seed": 1})
    result, code = run_job(gibbs_job(tmp_path / "run", config))
    assert (result["verdict"], code) == ("CERTIFIED", 0)
    assert result["selected"]["costs"]["harm"] < 0.4 < result["iterates"][0]["costs"]["harm"]
    again, _ = run_job(gibbs_job(tmp_path / "run", config))
    assert {**again, "seconds": 0} == {**result, "seconds": 0}
    run_job(gibbs_job(tmp_path / "run", config, shift=-0.05))
    certificate = read_json(tmp_path / "run" / "certificate.json")
    assert (certificate["opening"], certificate["delta_spent"]) == (2, 0.0045)


def test_two_limits_take_the_newton_rule(tmp_path: Path) -> None:
    config = gibbs_config([HARM, {"name": "other", "limit": 0.45, "cap": 1.0}], run={"seed": 2})
    result, code = run_job(gibbs_job(tmp_path / "run", config))
    assert code == 0 and set(result["selected"]["costs"]) == {"harm", "other"}
    assert all(result["selected"]["costs"][name] <= limit for name, limit in result["limits"].items())
