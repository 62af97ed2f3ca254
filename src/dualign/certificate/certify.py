"""Held-out costs -> Certificate: the one place where a limit is tested (a file of costs and a run both come here).

Each policy of the ladder is tested once, in an order fixed beforehand, each limit at the full error rate; the
first failure ends the testing. No torch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualign.certificate.claim import (
    Opening,
    Requirement,
    Seal,
    Terms,
    Units,
    asked,
    assumptions,
    check_terms,
    prompts_hash,
    quoted,
    seal,
    spent_delta,
    state_claim,
    statement,
)
from dualign.certificate.held_out import Costs, cautions, measured
from dualign.errors import CERTIFIED, INVALID_CERTIFICATE, NONE_CERTIFIED, NOT_CERTIFIED, DataError, UsageError
from dualign.maths import bounds, estimates
from dualign.records import Certificate, FloatArray

VERDICT_CODES = {
    "CERTIFIED": CERTIFIED,
    "NOT CERTIFIED": NOT_CERTIFIED,
    "NO CERTIFIED POLICY": NONE_CERTIFIED,
    "INVALID": INVALID_CERTIFICATE,
}
FIGURES = (
    *("constraint", "limit", "cap", "functional", "share_at_cap", "unit", "n_prompts", "n_units"),
    *("responses_per_prompt", "icc", "estimate", "estimate_over_prompts", "upper_bound", "simultaneous_upper_bound"),
    *("e_value", "p_value", "method", "companions"),
)
"""Figures of one limit; at the top level they are those of the limit with the least to spare."""
LARGEST_COST = 1e100
"""A cost beyond it, either way, is refused: its square is no number any more."""


Observations = Mapping[str, Mapping[str, Costs]]
"""Policy -> constraint -> costs; the order of the policies is the order of testing."""


def certify(
    observations: Observations,
    terms: Terms,
    *,
    rewards: Mapping[str, float] | None = None,
    sealed: Seal | None = None,
    opening: Opening | int | None = None,
    weights: Mapping[str, str] | None = None,
) -> Certificate:
    """Return the verdict on a ladder of policies.

    Args:
        observations: Policy -> constraint -> costs; the order of the policies is the order of testing.
        terms: What is claimed.
        rewards: Tune reward of each policy: the best in the certified prefix is selected (else the last one).
        sealed: The promise; another claim or other prompts make the certificate invalid, and nothing is tested.
        opening: Which look at this split it is, and what it may spend; none: the only one, which spends all.
        weights: Fingerprint of each policy's weights, which the claim then names it by.

    Raises:
        UsageError: terms that cannot be claimed (no cap, limit not below the cap, delta outside (0, 1)).
        DataError: costs that are not finite, or policies measured on different prompts.
    """
    units = checked_units(observations, terms)
    opening = Opening(opening) if isinstance(opening, int) else opening
    claim = claim_of(terms, list(observations), units, weights)
    delta = terms.delta if opening is None else opening.spent(terms.delta)
    first = next(iter(observations.values()))
    found = seal(asked({name: first[name].prompts for name in terms.requirements}), claim)
    broken = [*_broken_promises(sealed, found), *overdrawn(opening)]
    if broken:
        return invalid(terms, claim, broken, sealed=sealed or found, opening=opening)
    common = _common(terms, claim, opening)
    rungs = _climb(observations, terms, units, delta=delta)
    passed = [policy for policy, rung in rungs.items() if rung["verdict"] == "CERTIFIED"]
    selected = _select(passed, rewards)
    refused = "NOT CERTIFIED" if len(rungs) == 1 else "NO CERTIFIED POLICY"
    verdict = "CERTIFIED" if selected is not None else refused
    policy = selected if selected is not None else next(iter(rungs))
    shown = rungs[policy]["constraints"]
    if opening is not None and opening.cells is not None:
        common["family"] = _best_of(observations, terms, units, cells=opening.cells, delta=delta)
    figures = {"verdict": verdict, "selected": selected, **common, **_weakest(shown)}
    figures |= {"seal": found.hash, "assumptions": assumptions(terms, units.word, opening)}
    figures |= {"not_claimed": _not_claimed(), "warnings": cautions(observations[policy], shown, terms, units)}
    figures |= {"ladder": [_rung_row(name, rung, weights) for name, rung in rungs.items()], "constraints": shown}
    figures["statement"] = statement(terms, figures, unit=units.in_words)
    return Certificate(verdict, selected, figures)


def claim_of(terms: Terms, ladder: Sequence[str], units: Units, weights: Mapping[str, str] | None = None) -> str:
    """Return the claim; policies whose weights are known are named by their fingerprint, whatever they are called."""
    named = [policy if weights is None else f"weights {weights[policy]}" for policy in ladder]
    return state_claim(terms, named, unit=units.in_words)


def _common(terms: Terms, claim: str, opening: Opening | None) -> dict[str, Any]:
    """Return the first figures of every certificate."""
    spent = terms.delta if opening is None else opening.spent(terms.delta)
    return {
        "claim": claim,
        "statement": "",
        "delta": terms.delta,
        "delta_spent": spent,
        "opening": None if opening is None else opening.number,
        "family": None,
        "seed": terms.seed,
    }


def checked_units(observations: Observations, terms: Terms) -> Units:
    """Return the units of independence, after every check that the certificate makes of terms and costs.

    To be called before anything is sealed: what is refused here has opened nothing.

    Raises:
        UsageError: terms that cannot be claimed, or a bound that these costs have no form for.
        DataError: costs that are not finite, policies measured on different prompts, a prompt in two clusters.
    """
    check_terms(terms)
    _check_observations(observations, terms)
    names: dict[str, str] = {}
    table = [(policy, by_name[name]) for policy, by_name in observations.items() for name in terms.requirements]
    if len({costs.clusters is None for _, costs in table}) > 1:
        raise DataError("clusters: given for some policies or limits and not for others; a unit is the same for all")
    for policy, costs in table:
        for prompt, cluster in zip(costs.prompts, costs.clusters or costs.prompts, strict=True):
            if names.setdefault(prompt, cluster) != cluster:
                raise DataError(
                    f"policy {policy!r}: prompt {quoted(prompt)} lies in two clusters; a prompt belongs to exactly one"
                )
    if terms.method == "clopper-pearson":
        for by_name in observations.values():
            for name in terms.requirements:
                _require_count(by_name[name], terms.requirements[name])
    return Units.of(names)


def _require_count(costs: Costs, requirement: Requirement) -> None:
    """Refuse costs that are no events, one a unit, where the method of the claim counts events."""
    single = len(set(costs.clusters or costs.prompts)) == len(costs.prompts)
    values = requirement.functional.transform(costs.costs, costs.reference)
    if not single or requirement.counted_cap != 1.0 or not bool(np.isin(values, (0.0, 1.0)).all()):
        raise UsageError(
            "method clopper-pearson: needs a cost of 0 or 1 (functional rate) and one response a prompt; "
            "use method betting, which is valid for any costs below the cap"
        )


def _climb(observations: Observations, terms: Terms, units: Units, *, delta: float) -> dict[str, dict[str, Any]]:
    """Return the rungs in order, tested up to the first failure (fixed sequence: each at full ``delta``)."""
    rungs: dict[str, dict[str, Any]] = {}
    testing = True
    for policy, by_name in observations.items():
        if not testing:
            rungs[policy] = {"verdict": "NOT TESTED", "constraints": {}}
            continue
        figures = {name: _assess(by_name[name], name, terms, units, delta=delta) for name in terms.requirements}
        # All limits must pass, each at delta: the claim is wrong only if some limit is broken, and that one
        # limit's test then errs with probability at most delta (Berger 1982, intersection-union).
        testing = all(row["passed"] for row in figures.values())
        rungs[policy] = {"verdict": "CERTIFIED" if testing else "NOT CERTIFIED", "constraints": figures}
    return rungs


def _best_of(observations: Observations, terms: Terms, units: Units, *, cells: int, delta: float) -> dict[str, Any]:
    """Return what remains of the verdict where this cell is picked as the best of ``cells`` (Bonferroni)."""
    rungs = _climb(observations, terms, units, delta=delta / cells)
    passed = [policy for policy, rung in rungs.items() if rung["verdict"] == "CERTIFIED"]
    return {"cells": cells, "delta": delta / cells, "certified_as_best": passed}


def _assess(costs: Costs, name: str, terms: Terms, units: Units, *, delta: float) -> dict[str, Any]:
    """Return all figures of one limit for one policy."""
    requirement = terms.requirements[name]
    limit, cap = requirement.limit, requirement.counted_cap
    counted = measured(costs, requirement, units, terms.seed)
    means, values = counted.means, counted.values
    figures: dict[str, Any] = {
        "constraint": name,
        "limit": limit,
        "cap": cap,
        "functional": requirement.functional.spec,
        "share_at_cap": float((values >= cap).mean()) if requirement.cap is not None and values.size else 0.0,
        "unit": units.word,
        "n_prompts": int(counted.prompt_means.size),
        "n_units": int(means.size),
        "responses_per_prompt": _responses(np.unique(counted.ids, return_counts=True)[1]),
        "icc": _finite(estimates.intraclass_correlation(values, counted.ids)),
        "estimate": float(means.mean()) if means.size else None,
        "estimate_over_prompts": float(counted.prompt_means.mean()) if means.size else None,
        "method": terms.method,
    }
    count = _event_count(means, values, cap)
    figures |= _test(means, count, limit=limit, cap=cap, delta=delta, method=terms.method)
    share = delta / len(terms.requirements)
    figures["simultaneous_upper_bound"] = (
        figures["upper_bound"] if share == delta else _bound(means, count, cap=cap, delta=share, method=terms.method)
    )
    return figures | {"companions": _companions(means, count, requirement, delta=delta)}


def _event_count(units: FloatArray, values: FloatArray, cap: float) -> int | None:
    """Return the number of events of an indicator with one response a unit, else none."""
    single = units.size == values.size and cap == 1.0
    return int(np.count_nonzero(values)) if single and bool(np.isin(values, (0.0, 1.0)).all()) else None


def _test(
    units: FloatArray, count: int | None, *, limit: float, cap: float, delta: float, method: str
) -> dict[str, Any]:
    """Return bound, e-value, p-value and whether the limit passed."""
    if method == "clopper-pearson":
        bound = _bound(units, count, cap=cap, delta=delta, method=method)
        p = bounds.binomial_p_value(int(count or 0), units.size, rate=limit)
        return {"upper_bound": bound, "e_value": None, "p_value": p, "passed": bool(units.size) and bound <= limit}
    e_value = float(bounds.betting_e_value(units, limit, cap=cap, delta=delta)) if units.size else 1.0
    bound = bounds.betting_upper_bound(units, cap=cap, delta=delta, include=(limit,))
    # The wealth need not be monotone in the limit. Asking for the bound as well keeps the printed figures in
    # agreement, and can only make certification rarer.
    passed = e_value * delta >= 1 - 1e-9 and bound <= limit
    return {"upper_bound": bound, "e_value": e_value, "p_value": float(bounds.p_value(e_value)), "passed": passed}


def _bound(units: FloatArray, count: int | None, *, cap: float, delta: float, method: str) -> float:
    """Return the upper bound of the claim's method."""
    if method == "betting":
        return bounds.betting_upper_bound(units, cap=cap, delta=delta)
    if count is None:
        raise UsageError(
            "method clopper-pearson: needs a cost of 0 or 1 (functional rate) and one response a prompt; "
            "use method betting, which is valid for any costs below the cap"
        )
    return bounds.clopper_pearson(count, units.size, delta=delta)


def _companions(
    units: FloatArray, count: int | None, requirement: Requirement, *, delta: float
) -> dict[str, float | None]:
    """Return other upper bounds beside the method's, for comparison alone."""
    cap = requirement.counted_cap
    # Any floor that is fixed before the data will do: raising lower values to it can only raise a bound.
    floor = 2 * requirement.limit - cap if requirement.floor is None else requirement.floor
    floor = 0.0 if count is not None else floor
    table = {
        name: _finite(float(bound(units, cap=cap, floor=floor, delta=delta)))
        for name, bound in bounds.BOUNDS.items()
        if name != "betting"
    }
    if count is not None:
        table["clopper-pearson"] = bounds.clopper_pearson(count, units.size, delta=delta)
    return table


def _select(passed: Sequence[str], rewards: Mapping[str, float] | None) -> str | None:
    if not passed:
        return None
    return passed[-1] if rewards is None else max(passed, key=lambda policy: rewards[policy])


def _weakest(constraints: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of the limit that is furthest from certified, or certified with the least to spare."""
    row = max(constraints.values(), key=lambda figures: (not figures["passed"], _closeness(figures)))
    return {key: row[key] for key in FIGURES}


def _closeness(figures: Mapping[str, Any]) -> float:
    """Return how far the bound lies beyond the limit, in widths of the bound; e-values all stop at 1/delta."""
    if figures["estimate"] is None:
        return math.inf
    width = figures["upper_bound"] - figures["estimate"]
    return float((figures["upper_bound"] - figures["limit"]) / max(width, 1e-12))


def _rung_row(policy: str, rung: Mapping[str, Any], weights: Mapping[str, str] | None) -> dict[str, Any]:
    figures = _weakest(rung["constraints"]) if rung["constraints"] else dict.fromkeys(FIGURES)
    keys = ("constraint", "estimate", "upper_bound", "e_value", "p_value")
    named = {} if weights is None else {"weights": weights[policy]}
    return {"policy": policy, **named, "verdict": rung["verdict"], **{key: figures[key] for key in keys}}


def _broken_promises(sealed: Seal | None, found: Seal) -> list[str]:
    """Return what of the promise was changed."""
    if sealed is None or sealed == found:
        return []
    reasons = []
    if sealed.prompts != found.prompts:
        reasons.append("the prompts are not those that were sealed")
    if sealed.claim != found.claim:
        reasons.append(f"the sealed claim was: {sealed.claim}")
    return reasons


def overdrawn(opening: Opening | None) -> list[str]:
    """Return why nothing is left to spend on this look; empty where something is."""
    if opening is None or opening.planned is None or opening.number <= opening.planned:
        return []
    return [f"{opening.planned} openings were planned, and this is number {opening.number}: nothing is left to spend"]


def invalid(
    terms: Terms, claim: str, reasons: Sequence[str], *, sealed: Seal, opening: Opening | None = None
) -> Certificate:
    """Return the certificate that tests nothing, because a promise was broken or its record is lost."""
    empty = dict.fromkeys(FIGURES) | {"companions": {}}
    figures = {"verdict": "INVALID", "selected": None, "reasons": list(reasons), **_common(terms, claim, opening)}
    figures |= {**empty, "seal": sealed.hash, "assumptions": [], "not_claimed": _not_claimed(), "warnings": []}
    figures |= {"statement": f"Nothing is shown: {'; '.join(reasons)}.", "ladder": [], "constraints": {}}
    return Certificate("INVALID", None, figures)


def _check_observations(observations: Mapping[str, Mapping[str, Costs]], terms: Terms) -> None:
    if not observations:
        raise DataError("no policy to certify: there are no costs")
    for name in terms.requirements:
        sets: dict[str, set[str]] = {}
        for policy, by_name in observations.items():
            if name not in by_name:
                raise DataError(f"policy {policy!r}: has no costs for the limit {name!r}")
            costs = by_name[name].costs
            if not bool(np.isfinite(costs).all()):
                raise DataError(f"policy {policy!r}: a cost of {name!r} is not a finite number; score it again")
            if len(costs) and float(np.abs(costs).max()) > LARGEST_COST:
                raise DataError(f"policy {policy!r}: a cost of {name!r} is beyond {LARGEST_COST:g}; rescale the costs")
            sets[policy] = set(by_name[name].prompts)
        _same_prompts(name, sets)


def _same_prompts(name: str, sets: Mapping[str, set[str]]) -> None:
    """Refuse rungs that were measured on other prompts: a prompt that is missing may be missing for its cost."""
    every = set().union(*sets.values())
    for policy, prompts in sets.items():
        if prompts != every:
            example = min(every - prompts)
            raise DataError(
                f"policy {policy!r}: lacks {len(every - prompts)} of the {len(every)} prompts of {name!r} "
                f"(for example {example[:60]!r}); every policy must be measured on the same prompts"
            )


def _not_claimed() -> list[str]:
    return [
        "That the scorer is right: the claim is about its numbers.",
        "Anything about a single prompt, response or subgroup: the claim is about an average.",
        "Anything about other prompts, other decoding, or a policy that is changed afterwards.",
        "How large costs above the cap are: they count as the cap.",
        "The companion bounds: they are shown for comparison and decided nothing.",
    ]


def _responses(counts: NDArray[np.intp]) -> float | int | None:
    if not counts.size:
        return None
    return int(counts[0]) if bool((counts == counts[0]).all()) else float(counts.mean())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


__all__ = [
    "Costs",
    "Observations",
    "Opening",
    "Requirement",
    "Seal",
    "Terms",
    "Units",
    "VERDICT_CODES",
    "certify",
    "check_terms",
    "checked_units",
    "claim_of",
    "invalid",
    "overdrawn",
    "prompts_hash",
    "seal",
    "spent_delta",
    "state_claim",
]
