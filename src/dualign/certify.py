"""Held-out costs -> Certificate: the one place where a limit is tested (a file of costs and a run both come here).

Each policy of the ladder is tested once, in an order fixed beforehand, each limit at the full error rate; the
first failure ends the testing. No torch.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualign.errors import CERTIFIED, INVALID_CERTIFICATE, NONE_CERTIFIED, NOT_CERTIFIED, DataError, UsageError
from dualign.maths import bounds, clustering
from dualign.maths.functionals import Functional, Mean
from dualign.records import Certificate, FloatArray

VERDICT_CODES = {
    "CERTIFIED": CERTIFIED,
    "NOT CERTIFIED": NOT_CERTIFIED,
    "NO CERTIFIED POLICY": NONE_CERTIFIED,
    "INVALID": INVALID_CERTIFICATE,
}
METHODS = ("betting", "clopper-pearson")
FIGURES = (
    *("constraint", "limit", "cap", "functional", "share_at_cap", "unit", "n_prompts", "n_units"),
    *("responses_per_prompt", "icc", "estimate", "upper_bound", "simultaneous_upper_bound"),
    *("e_value", "p_value", "method", "companions"),
)
"""Figures of one limit; at the top level they are those of the limit with the least to spare."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of one policy under one constraint, a row a response; only prompts of the constraint's slice."""

    prompts: Sequence[str]
    """Prompt id of each response."""
    costs: FloatArray
    """Shape ``[response]``, raw units, finite."""
    clusters: Sequence[str] | None = None
    """Cluster of each response's prompt; the cluster is the unit of independence then."""
    reference: FloatArray | None = None
    """Mean cost of the reference on each response's prompt, for the functional ``relative``."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One limit, as it is claimed."""

    limit: float
    cap: float | None = None
    """Costs above it count as the cap; needed by every functional but ``rate``."""
    functional: Functional = field(default_factory=Mean)
    scorer: str = ""
    """Id and revision of what gave the costs."""
    where: Mapping[str, str] = field(default_factory=dict)

    @property
    def counted_cap(self) -> float:
        """Return the cap of the transformed costs; infinite where none is known."""
        cap = self.functional.transform_cap(self.cap)
        return math.inf if cap is None else cap


@dataclass(frozen=True, slots=True)
class Terms:
    """All that is fixed before the costs are opened; every field is part of the claim."""

    requirements: Mapping[str, Requirement]
    delta: float = 0.05
    """One minus the confidence."""
    seed: int | None = None
    """Another order of the prompts; named in the claim, because the best of several orders is worth nothing."""
    decoding: str = ""
    method: str = "betting"
    """``betting``, or ``clopper-pearson`` for rates with one response a prompt."""


@dataclass(frozen=True, slots=True)
class Seal:
    """What was promised before opening: the claim and the prompts."""

    claim: str
    prompts: str
    """``prompts_hash`` of the calibration prompts."""

    @property
    def hash(self) -> str:
        """Return the SHA-256 that stands for claim and prompts."""
        return hashlib.sha256(f"{self.prompts}\n{self.claim}".encode()).hexdigest()


def prompts_hash(prompt_ids: Iterable[str]) -> str:
    """Return the SHA-256 of the set of ``prompt_ids``; their order and repetition do not matter."""
    return hashlib.sha256(json.dumps(sorted(set(prompt_ids))).encode()).hexdigest()


def seal(prompt_ids: Iterable[str], claim: str) -> Seal:
    """Return the seal of ``claim`` on the calibration prompts, to be kept before any cost is seen."""
    return Seal(claim, prompts_hash(prompt_ids))


def spent_delta(delta: float, opening: int | None) -> float:
    """Return what the ``opening``-th look (from 1) may spend: ``0.9 * 0.1^(j-1) * delta``, which sums to delta.

    None means that the split is opened once and never again, and spends all.
    """
    return delta if opening is None else 0.9 * 0.1 ** (opening - 1) * delta


def state_claim(terms: Terms, ladder: Sequence[str], *, unit: str = "prompt") -> str:
    """Return the claim in words, with every number exact: equal claims are equal strings."""
    parts = [_limit_in_words(name, requirement) for name, requirement in terms.requirements.items()]
    first = f"With confidence {_exact(round(1 - terms.delta, 12))}: " + "; and ".join(parts) + "."
    order = f" Policies, in the order of testing: {', '.join(ladder)}."
    decoding = f" Decoding: {terms.decoding}." if terms.decoding else ""
    seed = "" if terms.seed is None else f" Order of the {unit}s: seed {terms.seed}."
    return f"{first}{order}{decoding} Unit: {unit}. Bound: {terms.method}.{seed}"


def certify(
    observations: Mapping[str, Mapping[str, Costs]],
    terms: Terms,
    *,
    rewards: Mapping[str, float] | None = None,
    sealed: Seal | None = None,
    opening: int | None = None,
) -> Certificate:
    """Return the verdict on a ladder of policies.

    Args:
        observations: Policy -> constraint -> costs; the order of the policies is the order of testing.
        terms: What is claimed.
        rewards: Tune reward of each policy: the best in the certified prefix is selected (else the last one).
        sealed: The promise; another claim or other prompts make the certificate invalid, and nothing is tested.
        opening: How many times this split has been opened, this time included; see ``spent_delta``.

    Raises:
        UsageError: terms that cannot be claimed (no cap, limit not below the cap, delta outside (0, 1)).
        DataError: costs that are not finite, or policies measured on different prompts.
    """
    check_terms(terms)
    _check_observations(observations, terms)
    table = [costs for by_name in observations.values() for costs in by_name.values()]
    unit = "cluster" if any(costs.clusters is not None for costs in table) else "prompt"
    claim = state_claim(terms, list(observations), unit=unit)
    delta = spent_delta(terms.delta, opening)
    common = {"claim": claim, "delta": terms.delta, "delta_spent": delta, "opening": opening, "seed": terms.seed}
    found = seal((prompt for costs in table for prompt in costs.prompts), claim)
    if sealed is not None and sealed != found:
        return _invalid(common, sealed, found)
    rungs = _climb(observations, terms, delta=delta, claim=claim)
    passed = [policy for policy, rung in rungs.items() if rung["verdict"] == "CERTIFIED"]
    selected = _select(passed, rewards)
    refused = "NOT CERTIFIED" if len(rungs) == 1 else "NO CERTIFIED POLICY"
    verdict = "CERTIFIED" if selected is not None else refused
    shown = rungs[selected if selected is not None else next(iter(rungs))]
    figures = {"verdict": verdict, "selected": selected, **common, **_weakest(shown["constraints"])}
    figures |= {"seal": found.hash, "assumptions": _assumptions(terms, unit, opening), "not_claimed": _not_claimed()}
    figures |= {"ladder": [_rung_row(policy, rung) for policy, rung in rungs.items()]}
    return Certificate(verdict, selected, figures | {"constraints": shown["constraints"]})


def _climb(
    observations: Mapping[str, Mapping[str, Costs]], terms: Terms, *, delta: float, claim: str
) -> dict[str, dict[str, Any]]:
    """Return the rungs in order, tested up to the first failure (fixed sequence: each at full ``delta``)."""
    rungs: dict[str, dict[str, Any]] = {}
    testing = True
    for policy, by_name in observations.items():
        if not testing:
            rungs[policy] = {"verdict": "NOT TESTED", "constraints": {}}
            continue
        figures = {name: _assess(by_name[name], name, terms, delta=delta, claim=claim) for name in terms.requirements}
        # All limits must pass, each at delta: the claim is wrong only if some limit is broken, and that one
        # limit's test then errs with probability at most delta (Berger 1982, intersection-union).
        testing = all(row["passed"] for row in figures.values())
        rungs[policy] = {"verdict": "CERTIFIED" if testing else "NOT CERTIFIED", "constraints": figures}
    return rungs


def _assess(costs: Costs, name: str, terms: Terms, *, delta: float, claim: str) -> dict[str, Any]:
    """Return all figures of one limit for one policy."""
    requirement = terms.requirements[name]
    limit, cap = requirement.limit, requirement.counted_cap
    transformed = requirement.functional.transform(costs.costs, costs.reference)
    prompts = np.asarray(costs.prompts, dtype=np.str_)
    order = np.lexsort((transformed, prompts))
    values, ids = np.minimum(transformed, cap)[order], prompts[order]
    units, unit_ids, n_prompts = _units(values, ids, costs, order)
    by_hash = np.argsort([hashlib.sha256(f"{claim}\n{unit}".encode()).hexdigest() for unit in unit_ids])
    units = units[by_hash]
    counts = np.unique(ids, return_counts=True)[1]
    figures: dict[str, Any] = {
        "constraint": name,
        "limit": limit,
        "cap": cap,
        "functional": requirement.functional.spec,
        "share_at_cap": float((transformed >= cap).mean()) if requirement.cap is not None and n_prompts else 0.0,
        "unit": "prompt" if costs.clusters is None else "cluster",
        "n_prompts": n_prompts,
        "n_units": int(units.size),
        "responses_per_prompt": _responses(counts),
        "icc": _finite(clustering.intraclass_correlation(values, ids)),
        "estimate": float(units.mean()) if units.size else None,
        "method": terms.method,
    }
    count = _event_count(units, values, cap)
    figures |= _test(units, count, limit=limit, cap=cap, delta=delta, method=terms.method)
    share = delta / len(terms.requirements)
    figures["simultaneous_upper_bound"] = (
        figures["upper_bound"] if share == delta else _bound(units, count, cap=cap, delta=share, method=terms.method)
    )
    return figures | {"companions": _companions(units, count, limit=limit, cap=cap, delta=delta)}


def _units(
    values: FloatArray, ids: NDArray[np.str_], costs: Costs, order: NDArray[np.intp]
) -> tuple[FloatArray, NDArray[np.str_], int]:
    """Return one value a unit of independence, the units' names, and the number of prompts.

    Responses are averaged first, then the prompts of a cluster: each unit weighs equally.
    """
    names, first, place = np.unique(ids, return_index=True, return_inverse=True)
    means = clustering.prompt_means(values, place)
    if costs.clusters is None:
        return means, names, names.size
    clusters = np.asarray(costs.clusters, dtype=np.str_)[order]
    torn = np.flatnonzero(clusters != clusters[first][place])
    if torn.size:
        raise DataError(f"prompt {ids[torn[0]]!r} lies in two clusters; a prompt belongs to exactly one")
    cluster_names, cluster_place = np.unique(clusters[first], return_inverse=True)
    return clustering.prompt_means(means, cluster_place), cluster_names, names.size


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
    units: FloatArray, count: int | None, *, limit: float, cap: float, delta: float
) -> dict[str, float | None]:
    """Return other upper bounds beside the method's, for comparison alone."""
    # Any floor that is fixed before the data will do: raising lower values to it can only raise a bound.
    floor = 0.0 if count is not None else 2 * limit - cap
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


def _rung_row(policy: str, rung: Mapping[str, Any]) -> dict[str, Any]:
    figures = _weakest(rung["constraints"]) if rung["constraints"] else dict.fromkeys(FIGURES)
    keys = ("constraint", "estimate", "upper_bound", "e_value", "p_value")
    return {"policy": policy, "verdict": rung["verdict"], **{key: figures[key] for key in keys}}


def _invalid(common: Mapping[str, Any], sealed: Seal, found: Seal) -> Certificate:
    """Return the certificate that tests nothing because the promise was changed."""
    reasons = []
    if sealed.prompts != found.prompts:
        reasons.append("the prompts are not those that were sealed")
    if sealed.claim != found.claim:
        reasons.append(f"the sealed claim was: {sealed.claim}")
    empty = dict.fromkeys(FIGURES) | {"companions": {}}
    figures = {"verdict": "INVALID", "selected": None, "reasons": reasons, **common, **empty}
    figures |= {"seal": sealed.hash, "assumptions": [], "not_claimed": _not_claimed(), "ladder": [], "constraints": {}}
    return Certificate("INVALID", None, figures)


def check_terms(terms: Terms) -> None:
    """Refuse terms that cannot be claimed; call it before anything expensive starts.

    Raises:
        UsageError: no limit, a missing or infinite cap, a limit not below its cap, delta outside (0, 1).
    """
    if not 0 < terms.delta < 1:
        raise UsageError(f"confidence must lie strictly between 0 and 1 (0.95, say); given {1 - terms.delta:g}")
    if not terms.requirements:
        raise UsageError("no limit given; name at least one limit to certify")
    if terms.method not in METHODS:
        raise UsageError(f"unknown method {terms.method!r}; known are {', '.join(METHODS)}")
    for name, requirement in terms.requirements.items():
        cap = requirement.counted_cap
        if requirement.cap is not None and not math.isfinite(requirement.cap):
            raise UsageError(f"cap of {name}: must be a finite number; given {requirement.cap}")
        if not math.isfinite(cap):
            raise UsageError(f"cap of {name}: missing; costs must have a largest value that counts, as {name}=50")
        if not math.isfinite(requirement.limit) or requirement.limit >= cap:
            raise UsageError(
                f"limit of {name}: must be a finite number below its cap {cap:g}, or every policy meets it; "
                f"given {requirement.limit:g}"
            )
        if requirement.functional.spec == "rate" and requirement.limit < 0:
            raise UsageError(f"limit of {name}: a rate is never below 0; given {requirement.limit:g}")


def _check_observations(observations: Mapping[str, Mapping[str, Costs]], terms: Terms) -> None:
    if not observations:
        raise DataError("no policy to certify: there are no costs")
    for name in terms.requirements:
        sets: dict[str, set[str]] = {}
        for policy, by_name in observations.items():
            if name not in by_name:
                raise DataError(f"policy {policy!r}: has no costs for the limit {name!r}")
            if not bool(np.isfinite(by_name[name].costs).all()):
                raise DataError(f"policy {policy!r}: a cost of {name!r} is not a finite number; score it again")
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


def _limit_in_words(name: str, requirement: Requirement) -> str:
    cap = "" if requirement.cap is None else f" (each above {_exact(requirement.cap)} counted as that)"
    where = ", ".join(f"{key} = {value}" for key, value in requirement.where.items())
    population = f" over prompts with {where}" if where else ""
    scorer = f" by {requirement.scorer}" if requirement.scorer else ""
    subject = f"the {requirement.functional.spec} of {name}{scorer}{population}{cap}"
    return f"{subject} is at most {_exact(requirement.limit)}"


def _assumptions(terms: Terms, unit: str, opening: int | None) -> list[str]:
    scorers = (
        ", ".join(sorted({r.scorer for r in terms.requirements.values() if r.scorer})) or "the one behind the costs"
    )
    look = "once" if opening is None else f"{opening} time(s), each paid for out of delta"
    return [
        f"The {unit}s are independent draws from the population that the claim is about; each weighs equally.",
        "No earlier step (training, tuning, choosing, ordering) has seen these prompts' costs.",
        f"The costs of this split have been opened {look}.",
        f"Scorer ({scorers}) and decoding are those of the claim, and each response was drawn independently.",
    ]


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


def _exact(value: float) -> str:
    """Return the shortest text that reads back as the same number."""
    return repr(float(value)).removesuffix(".0")
