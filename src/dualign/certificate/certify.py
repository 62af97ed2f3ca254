"""Held-out costs -> Certificate: the one place where a limit is tested (a file of costs and a run both come here).

Each policy of the ladder is tested once, in an order fixed beforehand, each limit at the full error rate; the
first failure ends the testing. No torch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dualign.certificate.claim import (
    Opening,
    Seal,
    Terms,
    Units,
    asked,
    assumptions,
    check_terms,
    quoted,
    seal,
    state_claim,
    statement,
)
from dualign.certificate.held_out import Costs, Measured, cautions, measured
from dualign.errors import CERTIFIED, INVALID_CERTIFICATE, NONE_CERTIFIED, NOT_CERTIFIED, DataError, UsageError
from dualign.hashing import plain
from dualign.maths import bounds, estimates
from dualign.records import Certificate

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
NOT_CLAIMED = (
    "That the scorer is right: the claim is about its numbers.",
    "Anything about a single prompt, response or subgroup: the claim is about an average.",
    "Anything about other prompts, other decoding, or a policy that is changed afterwards.",
    "How large costs above the cap are: they count as the cap.",
    "The companion bounds: they are shown for comparison and decided nothing.",
)
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
    opening: Opening | None = None,
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
    claim = claim_of(terms, list(observations), units, weights)
    first = next(iter(observations.values()))
    found = seal(asked({name: first[name].prompts for name in terms.requirements}), claim)
    broken = [*_broken_promises(sealed, found), *overdrawn(opening)]
    if broken:
        return invalid(terms, claim, broken, sealed=sealed or found, opening=opening)
    common = _common(terms, claim, opening)
    counted = {policy: _counted(by_name, terms, units) for policy, by_name in observations.items()}
    rungs = _climb(counted, terms, units.word, delta=common["delta_spent"])
    if opening is not None and opening.cells is not None:
        common["family"] = _best_of(counted, terms, units.word, cells=opening.cells, delta=common["delta_spent"])
    passed = _passed(rungs)
    selected = None if not passed else max(passed, key=lambda policy: rewards[policy]) if rewards else passed[-1]
    refused = "NOT CERTIFIED" if len(rungs) == 1 else "NO CERTIFIED POLICY"
    verdict = refused if selected is None else "CERTIFIED"
    policy = next(iter(rungs)) if selected is None else selected
    shown = rungs[policy]["constraints"]
    figures = {"verdict": verdict, "selected": selected, **common, **_weakest(shown)}
    figures |= {"seal": found.hash, "assumptions": assumptions(terms, units.word, opening)}
    figures |= {"not_claimed": list(NOT_CLAIMED), "warnings": cautions(counted[policy], shown)}
    figures |= {"ladder": [_rung_row(name, rung, weights) for name, rung in rungs.items()], "constraints": shown}
    figures["statement"] = statement(terms, figures, unit=units.in_words)
    return Certificate(verdict, selected, figures)


def claim_of(terms: Terms, ladder: Sequence[str], units: Units, weights: Mapping[str, str] | None = None) -> str:
    """Return the claim; policies whose weights are known are named by their fingerprint, whatever they are called."""
    named = [policy if weights is None else f"weights {weights[policy]}" for policy in ladder]
    return state_claim(terms, named, unit=units.in_words)


def _common(terms: Terms, claim: str, opening: Opening | None) -> dict[str, Any]:
    """Return the first figures of every certificate."""
    return {
        "claim": claim,
        "statement": "",
        "delta": terms.delta,
        "delta_spent": terms.delta if opening is None else opening.spent(terms.delta),
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
    if not observations:
        raise DataError("no policy to certify: there are no costs")
    for name in terms.requirements:
        _check_costs(name, {policy: by_name.get(name) for policy, by_name in observations.items()})
    units = Units.of(_clusters(observations, terms))
    if terms.method == "clopper-pearson":
        every = [counted for by_name in observations.values() for counted in _counted(by_name, terms, units).values()]
        if any(counted.events is None or not np.array_equal(counted.values, counted.transformed) for counted in every):
            raise UsageError(
                "method clopper-pearson: needs a cost of 0 or 1 (functional rate) and one response a prompt; "
                "use method betting, which is valid for any costs below the cap"
            )
    return units


def _clusters(observations: Observations, terms: Terms) -> dict[str, str]:
    """Return the name of each prompt's cluster, which is one for all policies and limits."""
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
    return names


def _check_costs(name: str, by_policy: Mapping[str, Costs | None]) -> None:
    """Refuse costs of the limit ``name`` that are no numbers, and rungs that were measured on other prompts."""
    sets: dict[str, set[str]] = {}
    for policy, costs in by_policy.items():
        if costs is None:
            raise DataError(f"policy {policy!r}: has no costs for the limit {name!r}")
        if not np.isfinite(costs.costs).all():
            raise DataError(f"policy {policy!r}: a cost of {name!r} is not a finite number; score it again")
        if np.abs(costs.costs).max(initial=0.0) > LARGEST_COST:
            raise DataError(f"policy {policy!r}: a cost of {name!r} is beyond {LARGEST_COST:g}; rescale the costs")
        sets[policy] = set(costs.prompts)
    every = set().union(*sets.values())
    for policy, prompts in sets.items():
        # a prompt that is missing may be missing for its cost
        if lacking := every - prompts:
            raise DataError(
                f"policy {policy!r}: lacks {len(lacking)} of the {len(every)} prompts of {name!r} "
                f"(for example {min(lacking)[:60]!r}); every policy must be measured on the same prompts"
            )


def _counted(by_name: Mapping[str, Costs], terms: Terms, units: Units) -> dict[str, Measured]:
    """Return the costs of one policy as they count, by limit."""
    return {name: measured(by_name[name], limit, units, terms.seed) for name, limit in terms.requirements.items()}


def _climb(
    ladder: Mapping[str, Mapping[str, Measured]], terms: Terms, unit: str, *, delta: float
) -> dict[str, dict[str, Any]]:
    """Return the rungs in order, tested up to the first failure (fixed sequence: each at full ``delta``)."""
    rungs: dict[str, dict[str, Any]] = {}
    testing = True
    for policy, counted in ladder.items():
        if not testing:
            rungs[policy] = {"verdict": "NOT TESTED", "constraints": {}}
            continue
        figures = {name: _assess(name, costs, terms, unit, delta=delta) for name, costs in counted.items()}
        # All limits must pass, each at delta: the claim is wrong only if some limit is broken, and that one
        # limit's test then errs with probability at most delta (Berger 1982, intersection-union).
        testing = all(row["passed"] for row in figures.values())
        rungs[policy] = {"verdict": "CERTIFIED" if testing else "NOT CERTIFIED", "constraints": figures}
    return rungs


def _passed(rungs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [policy for policy, rung in rungs.items() if rung["verdict"] == "CERTIFIED"]


def _best_of(
    ladder: Mapping[str, Mapping[str, Measured]], terms: Terms, unit: str, *, cells: int, delta: float
) -> dict[str, Any]:
    """Return which policies pass at ``delta / cells``: what holds if this cell is picked as the best (Bonferroni)."""
    share = delta / cells
    return {"cells": cells, "delta": share, "certified_as_best": _passed(_climb(ladder, terms, unit, delta=share))}


def _assess(name: str, counted: Measured, terms: Terms, unit: str, *, delta: float) -> dict[str, Any]:
    """Return all figures of one limit for one policy."""
    requirement, means, values = counted.requirement, counted.means, counted.values
    cap, responses = requirement.counted_cap, counted.responses
    figures: dict[str, Any] = {
        "constraint": name,
        "limit": requirement.limit,
        "cap": cap,
        "functional": requirement.functional.spec,
        "share_at_cap": float((values >= cap).mean()) if requirement.cap is not None and values.size else 0.0,
        "unit": unit,
        "n_prompts": int(counted.prompt_means.size),
        "n_units": int(means.size),
        "responses_per_prompt": None,
        "icc": plain(estimates.intraclass_correlation(values, counted.ids)),
        "estimate": None,
        "estimate_over_prompts": None,
        "method": terms.method,
    }
    if means.size:
        equal = bool((responses == responses[0]).all())
        figures["responses_per_prompt"] = int(responses[0]) if equal else float(responses.mean())
        figures["estimate"], figures["estimate_over_prompts"] = map(float, (means.mean(), counted.prompt_means.mean()))
    figures |= _test(counted, delta=delta, method=terms.method)
    share = delta / len(terms.requirements)
    figures["simultaneous_upper_bound"] = (
        figures["upper_bound"] if share == delta else _bound(counted, delta=share, method=terms.method)
    )
    return figures | {"companions": _companions(counted, delta=delta)}


def _test(counted: Measured, *, delta: float, method: str) -> dict[str, Any]:
    """Return bound, e-value, p-value and whether the limit passed."""
    means, limit = counted.means, counted.requirement.limit
    if method == "clopper-pearson":
        bound = _bound(counted, delta=delta, method=method)
        p = bounds.binomial_p_value(counted.events or 0, means.size, rate=limit)
        return {"upper_bound": bound, "e_value": None, "p_value": p, "passed": bool(means.size) and bound <= limit}
    cap = counted.requirement.counted_cap
    e_value = float(bounds.betting_e_value(means, limit, cap=cap, delta=delta)) if means.size else 1.0
    bound = bounds.betting_upper_bound(means, cap=cap, delta=delta, include=(limit,))
    # The wealth need not be monotone in the limit. Asking for the bound as well keeps the printed figures in
    # agreement, and can only make certification rarer.
    passed = e_value * delta >= 1 - 1e-9 and bound <= limit
    return {"upper_bound": bound, "e_value": e_value, "p_value": float(bounds.p_value(e_value)), "passed": passed}


def _bound(counted: Measured, *, delta: float, method: str) -> float:
    """Return the upper bound of the claim's method; that the costs have a form for it is checked before."""
    if method == "betting":
        return bounds.betting_upper_bound(counted.means, cap=counted.requirement.counted_cap, delta=delta)
    return bounds.clopper_pearson(counted.events or 0, counted.means.size, delta=delta)


def _companions(counted: Measured, *, delta: float) -> dict[str, float | None]:
    """Return other upper bounds beside the method's, for comparison alone."""
    requirement, means, events = counted.requirement, counted.means, counted.events
    cap = requirement.counted_cap
    # Any floor that is fixed before the data will do: raising lower values to it can only raise a bound.
    floor = 2 * requirement.limit - cap if requirement.floor is None else requirement.floor
    floor = floor if events is None else 0.0
    table = {
        name: plain(float(bound(means, cap=cap, floor=floor, delta=delta)))
        for name, bound in bounds.BOUNDS.items()
        if name != "betting"
    }
    if events is not None:
        table["clopper-pearson"] = bounds.clopper_pearson(events, means.size, delta=delta)
    return table


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
    """Return which parts of the promise were changed."""
    if sealed is None:
        return []
    reasons = ["the prompts are not those that were sealed"] if sealed.prompts != found.prompts else []
    return reasons + ([f"the sealed claim was: {sealed.claim}"] if sealed.claim != found.claim else [])


def overdrawn(opening: Opening | None) -> list[str]:
    """Return the reason why nothing is left to spend on this opening; empty if something is."""
    if opening is None or opening.planned is None or opening.number <= opening.planned:
        return []
    return [f"{opening.planned} openings were planned, and this is number {opening.number}: nothing is left to spend"]


def invalid(
    terms: Terms, claim: str, reasons: Sequence[str], *, sealed: Seal, opening: Opening | None = None
) -> Certificate:
    """Return the certificate that tests nothing, because a promise was broken or its record is lost."""
    empty = dict.fromkeys(FIGURES) | {"companions": {}}
    figures = {"verdict": "INVALID", "selected": None, "reasons": list(reasons), **_common(terms, claim, opening)}
    figures |= {**empty, "seal": sealed.hash, "assumptions": [], "not_claimed": list(NOT_CLAIMED), "warnings": []}
    figures |= {"statement": f"Nothing is shown: {'; '.join(reasons)}.", "ladder": [], "constraints": {}}
    return Certificate("INVALID", None, figures)
