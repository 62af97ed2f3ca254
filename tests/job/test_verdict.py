"""Which policy is preferred, in which order candidates are tested, and that a claim is sealed once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dualign.job.search import prepare
from dualign.job.verdict import ladder, limits_met, open_calibration, preferred, safety
from dualign.records import Evaluation, Iterate
from dualign.runs.store import read_json
from gibbs_jobs import gibbs_config, gibbs_job, prompts, with_splits

LIMITS = np.array([0.5])


def iterate(name: str, cost: float, reward: float, error: float = 0.05) -> Iterate:
    evaluation = Evaluation(reward, 0.1, np.array([cost]), np.array([error]), np.array([1.0]), 0.5, 0.1, 100)
    return Iterate(0, np.zeros(1), evaluation, name)


PLAIN = iterate("plain", 0.90, 3.0)
CLOSE = iterate("close", 0.45, 2.5)
"""One standard error below its limit: not met."""
MET = iterate("met", 0.40, 2.0)
SAFE = iterate("safe", 0.20, 1.0)
SAFER = iterate("safer", 0.10, 1.5)


def test_a_limit_is_met_where_it_holds_with_its_error() -> None:
    # 0.5 - 1.645 * 0.05 = 0.41775
    assert limits_met(iterate("in", 0.417, 0.0).evaluation, LIMITS)
    assert not limits_met(iterate("out", 0.418, 0.0).evaluation, LIMITS)
    assert safety(MET.evaluation, LIMITS) == pytest.approx(-2.0)


def test_the_best_reward_among_those_that_meet_the_limits_else_the_closest() -> None:
    assert preferred([PLAIN, CLOSE, MET, SAFE, SAFER], LIMITS) is MET
    assert preferred([PLAIN, CLOSE], LIMITS) is CLOSE
    # closest is in standard errors: 8 of them against 10
    assert preferred([iterate("near", 0.6, 1.0, error=0.01), PLAIN], LIMITS) is PLAIN


def test_the_ladder_goes_from_the_safest_to_the_preferred() -> None:
    everything = [PLAIN, CLOSE, MET, SAFE, SAFER]
    assert ladder(everything, LIMITS, 1) == [MET]
    assert ladder(everything, LIMITS, 2) == [SAFER, MET]
    assert ladder(everything, LIMITS, 3) == [SAFER, SAFE, MET]
    assert ladder(everything, LIMITS, 9) == [SAFER, SAFE, MET]
    assert ladder([PLAIN], LIMITS, 2) == [PLAIN]


HARM = {"name": "harm", "limit": 0.45, "cap": 1.0}


def measured(run: Path, constraint: dict[str, object], multipliers: list[float], **splits: int) -> tuple:
    """Return a search and policies at those normalised multipliers, measured."""
    from dualign.job.search import settings_of
    from dualign.methods.c_dpo import relabelled

    job = gibbs_job(run, gibbs_config([constraint], certificate={"responses_per_prompt": 2}))
    job = with_splits(job, **{name: prompts(name, count) for name, count in splits.items()})
    search = prepare(job)
    found = []
    for k, multiplier in enumerate(multipliers):
        objective = relabelled(np.array([multiplier]), 0.3, settings_of(job, np.array([multiplier])))
        policy = search.problem().backend.fit(
            search.groups(), objective=objective, reference=job.reference, start=None, seed=0, name=f"{k:02d}"
        )
        found.append(Iterate(k, np.array([multiplier]), search.measure(policy), policy))
    return search, found


def test_another_ladder_is_a_further_opening(tmp_path: Path) -> None:
    search, (loose, tight) = measured(tmp_path / "run", HARM, [0.0, 2.0])
    first = open_calibration(search, [tight])
    assert first.verdict == "CERTIFIED"
    assert open_calibration(search, [tight]).figures == first.figures
    second = open_calibration(search, [tight, loose])
    assert (second.figures["opening"], second.figures["delta_spent"]) == (2, 0.0045)
    assert second.figures["upper_bound"] > first.figures["upper_bound"]
    # a fresh process reads the promises from the disk, even without state.json
    for name in ("state.json", "state.json.previous"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
    again = replace(search, job=gibbs_job(tmp_path / "run", search.job.config))
    assert open_calibration(again, [tight, loose]).figures == second.figures
    assert open_calibration(again, [tight]).figures == first.figures


def test_the_claim_names_policies_by_their_weights_and_the_statement_the_certified_one(tmp_path: Path) -> None:
    search, (tighter, tight) = measured(tmp_path / "run", HARM, [3.0, 2.0])
    found = open_calibration(search, [tighter, tight])
    weights = [row["weights"] for row in found.figures["ladder"]]
    assert len(set(weights)) == 2 and all(len(text) == 16 for text in weights)
    assert f'order of testing: "weights {weights[0]}", "weights {weights[1]}"' in found.figures["claim"]
    chosen = next(row for row in found.figures["ladder"] if row["policy"] == found.selected)
    assert f'of policy "{found.selected}" (weights {chosen["weights"]})' in found.figures["statement"]
    assert "order of testing" not in found.figures["statement"]
    assert found.figures["claim"] in [
        value["claim"]
        for name, value in read_json(tmp_path / "run" / "state.json")["choices"].items()
        if name == "opening-1"
    ]


def test_near_copies_are_one_unit_of_the_certificate(tmp_path: Path) -> None:
    search, (tight,) = measured(tmp_path / "run", HARM, [2.0])
    copies = [replace(prompt, cluster=f"c{k // 3}") for k, prompt in enumerate(prompts("calibration", 300))]
    found = open_calibration(replace(search, job=with_splits(search.job, calibration=copies)), [tight])
    assert (found.figures["unit"], found.figures["n_units"], found.figures["n_prompts"]) == ("cluster", 100, 300)
    assert "Unit: cluster (100 of 300 prompts, partition " in found.figures["claim"]


def test_other_calibration_prompts_are_invalid(tmp_path: Path) -> None:
    search, (tight,) = measured(tmp_path / "run", HARM, [2.0])
    open_calibration(search, [tight])
    fewer = replace(search, job=with_splits(search.job, calibration=prompts("calibration", 599)))
    found = open_calibration(fewer, [tight])
    assert found.verdict == "INVALID" and "the prompts are not those that were sealed" in found.figures["reasons"]


def test_the_first_failure_ends_the_testing(tmp_path: Path) -> None:
    search, (plain, bad) = measured(tmp_path / "run", HARM, [0.0, 0.1])
    found = open_calibration(search, [bad, plain])
    assert found.verdict == "NO CERTIFIED POLICY"
    assert [row["verdict"] for row in found.figures["ladder"]] == ["NOT CERTIFIED", "NOT TESTED"]


def test_the_threshold_of_a_tail_is_that_of_the_preferred_policy_on_tune_prompts(tmp_path: Path) -> None:
    tail = {**HARM, "limit": 0.85, "functional": "cvar:0.9"}
    search, (tight, tighter) = measured(tmp_path / "run", tail, [2.0, 3.0])
    tune = search.samples(tight.policy).costs[..., 0]
    threshold = float(np.quantile(tune, 0.9, method="inverted_cdf"))
    found = open_calibration(search, [tighter, tight])
    assert found.figures["functional"] == f"cvar:0.9:{threshold!r}"
    assert f"cvar:0.9:{threshold!r}" in read_json(tmp_path / "run" / "state.json")["choices"]["opening-1"]["claim"]
    assert threshold != np.quantile(search.samples(tighter.policy).costs[..., 0], 0.9, method="inverted_cdf")
    assert threshold != np.quantile(search.train.costs[..., 0], 0.9, method="inverted_cdf")
    # the cap of the tail: t + (1 - t) / (1 - 0.9)
    assert found.figures["cap"] == pytest.approx(threshold + (1 - threshold) * 10)


def test_the_slice_alone_is_opened(tmp_path: Path) -> None:
    search, (tight,) = measured(tmp_path / "run", {**HARM, "where": {"label": "risky"}}, [3.0])
    found = open_calibration(search, [tight])
    assert found.figures["n_prompts"] == 300
