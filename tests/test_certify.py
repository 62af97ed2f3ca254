"""The certificate: its order, its ladder, its seal, and what it says when it must not be trusted."""

import hashlib
import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from dualign.certificate.certify import certify, checked_units
from dualign.certificate.claim import (
    Opening,
    Requirement,
    Seal,
    Terms,
    Units,
    prompts_hash,
    seal,
    spent_delta,
    state_claim,
)
from dualign.certificate.held_out import Costs
from dualign.errors import DataError, UsageError
from dualign.maths import bounds
from dualign.maths.functionals import Rate, Relative, parse

FIELDS = {
    *("verdict", "claim", "delta", "limit", "cap", "share_at_cap", "unit", "n_prompts", "n_units"),
    *("responses_per_prompt", "icc", "estimate", "upper_bound", "e_value", "p_value", "method", "seed"),
    *("companions", "assumptions", "not_claimed", "ladder", "constraints"),
}
TERMS = Terms({"cost": Requirement(0.0, 50.0)})


def costs(mean: float, *, n: int = 300, k: int = 2, seed: int = 0, spread: float = 15.0) -> Costs:
    rng = np.random.default_rng(seed)
    values = mean + spread * (0.8 * rng.standard_normal((n, 1)) + 0.6 * rng.standard_normal((n, k)))
    return Costs([f"prompt {j}" for j in range(n) for _ in range(k)], values.ravel())


def one(sample: Costs, terms: Terms = TERMS, **given: object) -> dict[str, object]:
    return dict(certify({"policy": {"cost": sample}}, terms, **given).figures)  # type: ignore[arg-type]


def test_every_field_is_there_and_is_json() -> None:
    figures = one(costs(-8))
    assert set(figures) >= FIELDS
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["verdict"] == "CERTIFIED"
    assert (figures["n_prompts"], figures["n_units"], figures["responses_per_prompt"]) == (300, 300, 2)
    assert figures["estimate"] < figures["upper_bound"] <= 0  # type: ignore[operator]
    assert figures["e_value"] >= 20 - 1e-6  # type: ignore[operator]
    assert figures["icc"] == pytest.approx(0.64, abs=0.1)


def test_a_mean_above_the_limit_is_not_certified() -> None:
    figures = one(costs(3))
    assert (figures["verdict"], figures["selected"]) == ("NOT CERTIFIED", None)
    assert figures["p_value"] == 1.0
    assert figures["upper_bound"] > 3  # type: ignore[operator]


def test_the_order_of_rows_changes_nothing() -> None:
    sample = costs(-4)
    order = np.random.default_rng(1).permutation(600)
    moved = Costs([sample.prompts[i] for i in order], sample.costs[order])
    assert one(sample) == one(moved)


def test_the_order_of_prompts_follows_the_seed_and_the_prompts_alone() -> None:
    sample = costs(-1.5)
    wordings = [replace(TERMS, decoding=f"temperature 0.{k}") for k in range(20)]
    assert len({one(sample, terms)["e_value"] for terms in wordings}) == 1
    assert len({str(one(sample, terms)["claim"]) for terms in wordings}) == 20
    # as documented: SHA-256 of the seed, the hash of the set of prompts, and the unit's smallest prompt
    units = Units.of({prompt: prompt for prompt in sample.prompts})
    expected = hashlib.sha256(f"4\n{prompts_hash(sample.prompts)}\nprompt 7".encode()).hexdigest()
    assert units.places(["prompt 7"], 4) == [expected]


def test_a_seed_is_named_in_the_claim() -> None:
    sample = costs(-1.5)
    plain, seeded = one(sample), one(sample, replace(TERMS, seed=4))
    assert "seed 4" in str(seeded["claim"])
    assert "seed" not in str(plain["claim"])
    assert plain["e_value"] != seeded["e_value"]
    assert plain["estimate"] == pytest.approx(seeded["estimate"])


def test_responses_of_a_prompt_are_averaged_not_counted() -> None:
    sample = costs(-4, k=1)
    repeated = Costs([p for p in sample.prompts for _ in range(8)], np.repeat(sample.costs, 8))
    assert one(repeated)["upper_bound"] == pytest.approx(one(sample)["upper_bound"])
    assert one(repeated)["icc"] == 1.0


def test_clusters_are_the_unit_where_given() -> None:
    sample = costs(-8, k=1)
    clusters = [str(int(p.split()[1]) // 3) for p in sample.prompts]
    figures = one(replace(sample, clusters=clusters))
    assert (figures["unit"], figures["n_prompts"], figures["n_units"]) == ("cluster", 300, 100)
    assert figures["upper_bound"] > one(sample)["upper_bound"]  # type: ignore[operator]
    assert "Unit: cluster" in str(figures["claim"])
    with pytest.raises(DataError, match="two clusters"):
        one(Costs(["a", "a"], np.zeros(2), clusters=["x", "y"]))


def clustered(mean: float, size: int, *, n: int = 300) -> Costs:
    """Costs of near-copies: the prompts of a cluster share most of their cost."""
    rng = np.random.default_rng(3)
    owners = [j // size for j in range(n)]
    shared = rng.normal(mean, 14, n // size + 1)
    values = shared[owners] + rng.normal(0, 3, n)
    return Costs([f"prompt {j}" for j in range(n)], values, [f"cluster {owner}" for owner in owners])


def test_forty_renamings_of_the_clusters_give_the_identical_certificate() -> None:
    sample = clustered(-4, 3)
    first = one(sample)
    assert first["n_units"] == 100
    for seed in range(40):
        names = np.random.default_rng(seed).permutation(1000)
        renamed = [f"{names[int(name.split()[1])]}" for name in sample.clusters or ()]
        assert one(replace(sample, clusters=renamed)) == first


def test_which_prompts_are_together_is_part_of_the_claim() -> None:
    sample = clustered(-4, 3)
    other = replace(sample, clusters=[f"cluster {j // 4}" for j in range(300)])
    claims = {str(one(each)["claim"]) for each in (sample, other, replace(sample, clusters=None))}
    assert len(claims) == 3
    promise = Seal(str(one(sample)["claim"]), prompts_hash(sample.prompts))
    assert one(sample, sealed=promise)["verdict"] != "INVALID"
    assert one(other, sealed=promise)["verdict"] == "INVALID"


def test_clusters_of_one_prompt_each_are_prompts() -> None:
    sample = costs(-4)
    alone = replace(sample, clusters=[f"only {prompt}" for prompt in sample.prompts])
    assert one(alone) == one(sample)


def test_clusters_are_the_same_for_all_policies_and_limits() -> None:
    sample = clustered(-4, 3)
    other = replace(sample, clusters=[f"cluster {j // 4}" for j in range(300)])
    with pytest.raises(DataError, match="lies in two clusters"):
        certify({"a": {"cost": sample}, "b": {"cost": other}}, TERMS)
    with pytest.raises(DataError, match="given for some policies or limits and not for others"):
        certify({"a": {"cost": sample}, "b": {"cost": replace(sample, clusters=None)}}, TERMS)


def test_both_means_are_printed_and_warned_of_where_large_clusters_cost_more() -> None:
    # nine prompts of one cluster cost 9, twenty others -4: over clusters -3.38, over prompts .03
    ids = [f"p{j}" for j in range(29)]
    sample = Costs(ids, np.r_[np.full(9, 9.0), np.full(20, -4.0)], ["big"] * 9 + ids[9:])
    figures = one(sample)
    assert figures["estimate"] == pytest.approx(-71 / 21)
    assert figures["estimate_over_prompts"] == pytest.approx(1 / 29)
    assert any("mean over clusters" in line for line in figures["warnings"])  # type: ignore[attr-defined]
    assert not one(clustered(-4, 3))["warnings"]


# --- warnings -------------------------------------------------------------------------------------------


def sentinel(count: int, n: int = 200) -> Costs:
    return Costs([f"q{j}" for j in range(n)], np.r_[np.full(count, -9999.0), np.full(n - count, 5.0)])


def test_few_units_that_carry_the_wealth_are_named_and_a_floor_ends_it() -> None:
    figures = one(sentinel(4))
    assert figures["verdict"] == "CERTIFIED"
    (line,) = figures["warnings"]  # type: ignore[misc]
    assert (
        "4 of 200 prompts carry the certificate" in line
        and all(f'"q{k}"' in line for k in range(4))
        and "--floor" in line
    )
    floored = Terms({"cost": Requirement(0.0, 50.0, floor=-50.0)})
    figures = one(sentinel(4), floored)
    assert (figures["verdict"], figures["warnings"]) == ("NOT CERTIFIED", [])
    assert figures["estimate"] == pytest.approx((196 * 5 - 4 * 50) / 200)
    assert "each below -50 counted as that" in str(figures["claim"])
    # a floor can only make a certificate rarer
    assert one(costs(-4), floored)["upper_bound"] >= one(costs(-4))["upper_bound"]  # type: ignore[operator]
    assert not one(costs(-4))["warnings"]


def test_other_warnings() -> None:
    uneven = Costs(["a", "a", "b"], np.array([-1.0, -2.0, -3.0]))
    assert "1 to 2 responses" in one(uneven)["warnings"][0]  # type: ignore[index]
    above = one(Costs(["a", "b"], np.array([60.0, 70.0])))
    assert "at or above the cap 50" in above["warnings"][0]  # type: ignore[index]
    shares = Costs([f"p{j}" for j in range(50)], np.linspace(0.01, 0.3, 50))
    (line,) = one(shares, Terms({"cost": Requirement(0.1, functional=Rate())}))["warnings"]  # type: ignore[misc]
    assert "rate:T" in line
    counted = one(shares, Terms({"cost": Requirement(0.1, functional=parse("rate:0.5"))}))
    assert (counted["estimate"], counted["warnings"], counted["functional"]) == (0.0, [], "rate:0.5")


def test_texts_of_others_are_quoted_on_one_line_and_bounded() -> None:
    wild = "x\n. Unit: cluster.\x1b[2J\ud800" + "y" * 5000
    claim = state_claim(Terms({"cost": Requirement(0.0, 50.0, scorer=wild)}, decoding=wild), [wild])
    assert claim.isprintable() and len(claim) < 2000
    assert "x\\n. Unit" in claim
    other = state_claim(Terms({"cost": Requirement(0.0, 50.0, scorer=wild + "y")}, decoding=wild), [wild])
    assert other != claim
    assert state_claim(TERMS, ["a", "b"]) != state_claim(TERMS, ["a, b"])


def test_the_statement_says_what_may_be_said_now() -> None:
    passed = one(costs(-8))
    assert 'of the answers of policy "policy"' in str(passed["statement"])
    assert str(passed["statement"]).startswith("With confidence 0.95: the mean of cost")
    failed = certify(ladder(2, -9), TERMS).figures["statement"]
    assert failed.startswith("Not shown: ") and 'Tested on policy "p0", the first of 2' in failed


def test_costs_beyond_any_scale_are_refused() -> None:
    for bad in (1e200, -1e200):
        with pytest.raises(DataError, match="beyond 1e"):
            one(Costs(["a", "b"], np.array([bad, 0.0])))


def test_costs_above_the_cap_count_as_the_cap_and_are_reported() -> None:
    sample = costs(-8, k=1)
    wild = sample.costs.copy()
    wild[:6] = 1e12
    at_cap = wild.copy()
    at_cap[:6] = 50.0
    figures = one(replace(sample, costs=wild))
    assert figures["share_at_cap"] == 6 / 300
    assert figures == one(replace(sample, costs=at_cap))


def test_one_prompt_certifies_nothing() -> None:
    figures = one(Costs(["a"], np.array([-1000.0])))
    assert figures["verdict"] == "NOT CERTIFIED"
    assert figures["companions"]["clustered-t"] is None  # type: ignore[index]


def test_no_prompt_of_a_slice_certifies_nothing() -> None:
    figures = one(Costs([], np.empty(0)))
    assert (figures["verdict"], figures["upper_bound"], figures["e_value"]) == ("NOT CERTIFIED", 50.0, 1.0)


# --- ladder -----------------------------------------------------------------------------------------


def ladder(*means: float) -> dict[str, dict[str, Costs]]:
    return {f"p{i}": {"cost": costs(mean, seed=i)} for i, mean in enumerate(means)}


def test_testing_stops_at_the_first_failure() -> None:
    certificate = certify(ladder(-9, -7, 2, -9), TERMS)
    assert [row["verdict"] for row in certificate.figures["ladder"]] == [
        "CERTIFIED", "CERTIFIED", "NOT CERTIFIED", "NOT TESTED"]  # fmt: skip
    assert certificate.selected == "p1"
    assert certificate.figures["estimate"] == certificate.figures["ladder"][1]["estimate"]
    assert certificate.figures["ladder"][3]["upper_bound"] is None


def test_the_best_tune_reward_in_the_certified_prefix_is_selected() -> None:
    rewards = {"p0": 3.0, "p1": 1.0, "p2": 9.0, "p3": 9.0}
    assert certify(ladder(-9, -7, 2, -9), TERMS, rewards=rewards).selected == "p0"


def test_none_of_several_shows_the_first() -> None:
    certificate = certify(ladder(2, -9), TERMS)
    assert certificate.verdict == "NO CERTIFIED POLICY"
    assert certificate.figures["estimate"] == certificate.figures["ladder"][0]["estimate"]


def test_the_ladder_errs_at_most_delta() -> None:
    # Four policies exactly at the limit: any certificate is false.
    wrong = 0
    for repetition in range(300):
        rungs = {f"p{i}": {"cost": costs(0, n=60, k=1, seed=1000 + 4 * repetition + i)} for i in range(4)}
        wrong += certify(rungs, replace(TERMS, delta=0.1)).verdict == "CERTIFIED"
    assert wrong / 300 <= 0.1 + 3 * math.sqrt(0.09 / 300)


def test_rungs_on_other_prompts_are_refused() -> None:
    rungs = ladder(-9, -7)
    sample = rungs["p1"]["cost"]
    rungs["p1"]["cost"] = Costs(sample.prompts[:-4], sample.costs[:-4])
    with pytest.raises(DataError, match="policy 'p1': lacks 2 of the 300 prompts"):
        certify(rungs, TERMS)


# --- several limits -----------------------------------------------------------------------------------


def test_all_limits_must_pass_each_at_delta_and_printed_bounds_hold_together() -> None:
    terms = Terms({"harm": Requirement(0.0, 50.0), "length": Requirement(0.0, 50.0)})
    both = {"policy": {"harm": costs(-8), "length": costs(-8, seed=1)}}
    figures = certify(both, terms).figures
    assert figures["verdict"] == "CERTIFIED"
    alone = certify({"policy": {"cost": costs(-8)}}, TERMS).figures["upper_bound"]
    row = figures["constraints"]["harm"]
    assert row["upper_bound"] == pytest.approx(alone, abs=0.5)  # same delta, another order of prompts
    assert row["simultaneous_upper_bound"] > row["upper_bound"]
    both["policy"]["length"] = costs(3)
    figures = certify(both, terms).figures
    assert (figures["verdict"], figures["constraint"]) == ("NOT CERTIFIED", "length")


@pytest.mark.parametrize(("name", "value"), [("betting_e_value", 19.9), ("betting_upper_bound", 0.01)])
def test_the_e_value_and_the_bound_must_both_certify(name: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # a wealth of 20 = 1 / 0.05 certifies, with a bound at or below the limit 0
    assert one(costs(-8))["verdict"] == "CERTIFIED"
    monkeypatch.setattr(bounds, name, lambda *_, **__: value)
    assert one(costs(-8))["verdict"] == "NOT CERTIFIED"


# --- functionals --------------------------------------------------------------------------------------


def test_a_rate_needs_no_cap_and_has_its_exact_bound_beside_it() -> None:
    clean = Costs([f"p{j}" for j in range(200)], np.r_[np.ones(1), -np.ones(199)])
    figures = one(clean, Terms({"cost": Requirement(0.05, functional=Rate())}))
    assert (figures["cap"], figures["estimate"], figures["verdict"]) == (1.0, 1 / 200, "CERTIFIED")
    exact = figures["companions"]["clopper-pearson"]  # type: ignore[index]
    assert exact == pytest.approx(0.0235, abs=1e-4)
    chosen = Terms({"cost": Requirement(0.0236, functional=Rate())}, method="clopper-pearson")
    figures = one(clean, chosen)
    assert (figures["verdict"], figures["upper_bound"], figures["e_value"]) == ("CERTIFIED", exact, None)
    assert figures["p_value"] == pytest.approx(0.05, abs=1e-3)


def test_clopper_pearson_refuses_several_responses_a_prompt() -> None:
    sample = Costs(["a", "a", "b", "b"], np.zeros(4))
    with pytest.raises(UsageError, match="one response a prompt"):
        one(sample, Terms({"cost": Requirement(0.1, functional=Rate())}, method="clopper-pearson"))


@pytest.mark.parametrize(
    "requirement", [Requirement(0.5, 1.0), Requirement(0.5, functional=Rate(), floor=0.1)], ids=["a size", "a floor"]
)
def test_clopper_pearson_refuses_what_is_no_count_of_events(requirement: Requirement) -> None:
    sample = Costs(["a", "b", "c"], np.array([0.0, 1.0, 7.0]))  # the cap would make an event of the last
    terms = Terms({"cost": requirement}, method="clopper-pearson")
    for test in (checked_units, certify):
        with pytest.raises(UsageError, match="needs a cost of 0 or 1"):
            test({"policy": {"cost": sample}}, terms)
    assert certify({"policy": {"cost": sample}}, replace(terms, method="betting")).verdict == "NOT CERTIFIED"


def test_cvar_is_tested_through_its_frozen_threshold() -> None:
    figures = one(costs(-20, spread=5.0), Terms({"cost": Requirement(0.0, 50.0, parse("cvar:0.9:-10.0"))}))
    assert figures["cap"] == pytest.approx(590.0)  # -10 + 60 / 0.1
    assert figures["functional"] == "cvar:0.9:-10.0"
    assert figures["estimate"] == pytest.approx(-10, abs=1.5)


def test_relative_tests_the_paired_difference() -> None:
    sample = costs(5)
    better = replace(sample, costs=sample.costs - 2.0, reference=sample.costs)
    figures = one(better, Terms({"cost": Requirement(0.0, 50.0, Relative())}))
    assert (figures["verdict"], figures["estimate"]) == ("CERTIFIED", pytest.approx(-2.0))


# --- seal ---------------------------------------------------------------------------------------------


def sealed_for(terms: Terms, rungs: dict[str, dict[str, Costs]]) -> object:
    return seal(rungs["p0"]["cost"].prompts, state_claim(terms, list(rungs)))


CHANGES = {
    "cap": Terms({"cost": Requirement(0.0, 51.0)}),
    "limit": Terms({"cost": Requirement(0.1, 50.0)}),
    "scorer": Terms({"cost": Requirement(0.0, 50.0, scorer="other@1")}),
    "decoding": replace(TERMS, decoding="temperature 0.7"),
    "delta": replace(TERMS, delta=0.1),
    "seed": replace(TERMS, seed=1),
    "slice": Terms({"cost": Requirement(0.0, 50.0, where={"label": "unsafe"})}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_claim_is_invalid_and_nothing_is_opened(change: str) -> None:
    rungs = ladder(-9, -7)
    figures = certify(rungs, CHANGES[change], sealed=sealed_for(TERMS, rungs)).figures  # type: ignore[arg-type]
    assert figures["verdict"] == "INVALID"
    assert (figures["estimate"], figures["ladder"]) == (None, [])
    assert set(figures) >= FIELDS
    assert "sealed claim" in figures["reasons"][0]


def test_another_ladder_or_other_prompts_are_invalid() -> None:
    rungs = ladder(-9, -7)
    promise = sealed_for(TERMS, rungs)
    turned = dict(reversed(rungs.items()))
    assert certify(turned, TERMS, sealed=promise).verdict == "INVALID"  # type: ignore[arg-type]
    fewer = {"p0": {"cost": costs(-9, n=299)}, "p1": {"cost": costs(-9, n=299)}}
    figures = certify(fewer, TERMS, sealed=promise).figures  # type: ignore[arg-type]
    assert figures["reasons"] == ["the prompts are not those that were sealed"]
    assert certify(rungs, TERMS, sealed=promise).verdict == "CERTIFIED"  # type: ignore[arg-type]


def test_a_second_opening_pays() -> None:
    assert [spent_delta(0.05, j) for j in (1, 2)] == pytest.approx([0.045, 0.0045])
    assert one(costs(-1.3))["delta_spent"] == 0.05  # opened once and never again
    assert sum(spent_delta(0.05, j) for j in range(1, 30)) == pytest.approx(0.05)
    first, second = (one(costs(-1.3), opening=Opening(j)) for j in (1, 2))
    assert second["upper_bound"] > first["upper_bound"]  # type: ignore[operator]
    assert (first["verdict"], second["verdict"]) == ("CERTIFIED", "NOT CERTIFIED")


def test_the_seal_stands_for_the_claim_and_the_prompts() -> None:
    promise = Seal("the mean is at most 0", prompts_hash(["a", "b"]))
    assert promise.hash == hashlib.sha256(f"{promise.prompts}\n{promise.claim}".encode()).hexdigest()
    others = (replace(promise, claim="the mean is at most 1"), replace(promise, prompts=prompts_hash(["a"])))
    assert len({promise.hash, *(other.hash for other in others)}) == 3


def test_the_prompts_hash_knows_a_set() -> None:
    assert prompts_hash(["b", "a", "a"]) == prompts_hash(["a", "b"]) != prompts_hash(["ab"])


# --- terms that cannot be claimed ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (Terms({"cost": Requirement(0.0)}), "cap of cost: missing"),
        (Terms({"cost": Requirement(0.0, math.inf)}), "must be a finite number"),
        (Terms({"cost": Requirement(50.0, 50.0)}), "below its cap 50"),
        (Terms({"cost": Requirement(math.nan, 50.0)}), "must be a finite number"),
        (Terms({"cost": Requirement(-0.1, functional=Rate())}), "never below 0"),
        (Terms({}), "no limit"),
        (replace(TERMS, delta=1.0), "confidence"),
        (replace(TERMS, method="t"), "known are betting"),
    ],
)
def test_bad_terms_are_refused(terms: Terms, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        one(costs(-4), terms)


def test_costs_that_are_no_numbers_are_refused() -> None:
    for bad, other in itertools.product((math.nan, math.inf, -math.inf), (0.0,)):
        with pytest.raises(DataError, match="not a finite number"):
            one(Costs(["a", "b"], np.array([bad, other])))
    with pytest.raises(DataError, match="no costs for the limit 'cost'"):
        certify({"policy": {}}, TERMS)
    with pytest.raises(DataError, match="no policy"):
        certify({}, TERMS)
