"""Held-out costs as they count in a certificate, and what to look at before relying on its verdict. No torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualign.certificate.claim import Requirement, Terms, Units, quoted
from dualign.maths import estimates
from dualign.maths.functionals import Rate
from dualign.records import FloatArray

FEW = 0.05
"""Share of the units that should not carry a certificate alone."""


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
class Measured:
    """The costs of one policy under one limit, as they count."""

    values: FloatArray
    """Shape ``[response]``: transformed, between floor and cap, in the order of prompts and values."""
    ids: NDArray[np.str_]
    """Shape ``[response]``: prompt of each value."""
    prompt_means: FloatArray
    """Shape ``[prompt]``."""
    means: FloatArray
    """Shape ``[unit]``, in the order of the bets: responses are averaged first, then the prompts of a cluster."""
    units: list[str]
    """Smallest prompt of each unit, in the order of ``means``."""


def measured(costs: Costs, requirement: Requirement, units: Units, seed: int | None) -> Measured:
    """Return the costs as they count, one value a unit of independence in the order of the bets."""
    transformed = requirement.functional.transform(costs.costs, costs.reference)
    floor = -math.inf if requirement.floor is None else requirement.floor
    counted = np.clip(transformed, floor, requirement.counted_cap)
    prompts = np.asarray(costs.prompts, dtype=np.str_)
    order = np.lexsort((transformed, prompts))
    values, ids = counted[order], prompts[order]
    names, place = np.unique(ids, return_inverse=True)
    prompt_means = estimates.prompt_means(values, place)
    kept, unit_place = np.unique([units.cluster_of[str(name)] for name in names], return_inverse=True)
    means = estimates.prompt_means(prompt_means, unit_place)
    by_hash = np.argsort(units.places(map(str, kept), seed))
    return Measured(values, ids, prompt_means, means[by_hash], [str(kept[k]) for k in by_hash])


def cautions(
    by_name: Mapping[str, Costs], figures: Mapping[str, Mapping[str, Any]], terms: Terms, units: Units
) -> list[str]:
    """Return what a reader should look at before relying on the verdict, or wondering at it."""
    found = []
    for name, requirement in terms.requirements.items():
        costs, row = by_name[name], figures[name]
        counted = measured(costs, requirement, units, terms.seed)
        said = [
            _few_carry_it(counted, row),
            _unequal_responses(counted),
            _cap_below_all(costs, requirement),
            _always_above(costs, requirement),
            _means_differ(counted, row),
        ]
        found += [f"{name}: {line}" for line in said if line]
    return found


def _few_carry_it(counted: Measured, row: Mapping[str, Any]) -> str | None:
    """Return the units without whose very low costs the mean would be above the limit; none where none carry it."""
    means, limit = counted.means, row["limit"]
    if not row["passed"] or means.size < 2:
        return None
    ranks = np.argsort(means, kind="stable")
    few = math.ceil(FEW * means.size)
    for count in range(1, few + 1):
        raised = np.maximum(means, means[ranks[count]])
        if raised.mean() > limit:
            names = ", ".join(quoted(counted.units[k]) for k in ranks[:count][:5])
            return (
                f"{count} of {means.size} {row['unit']}s carry the certificate (lowest cost "
                f"{means[ranks[0]]:.4g}; {names}{', ...' if count > 5 else ''}): with the next lowest cost in their "
                f"place the mean is {raised.mean():.4g}, above the limit {limit:g}; a floor (--floor, or floor in the "
                "config), fixed before opening, bounds what one can pay for"
            )
    return None


def _unequal_responses(counted: Measured) -> str | None:
    counts = np.unique(counted.ids, return_counts=True)[1]
    if not counts.size or counts.min() == counts.max():
        return None
    return (
        f"prompts have {counts.min()} to {counts.max()} responses; each prompt weighs equally, and if the number "
        "depends on the costs (failed or filtered responses) the estimate is biased"
    )


def _cap_below_all(costs: Costs, requirement: Requirement) -> str | None:
    if requirement.cap is None or not len(costs.costs):
        return None
    lowest = float(requirement.functional.transform(costs.costs, costs.reference).min())
    if isinstance(requirement.functional, Rate) or lowest < requirement.counted_cap:
        return None
    return f"every cost is at or above the cap {requirement.cap:g}: nothing could be certified; is it in their units?"


def _always_above(costs: Costs, requirement: Requirement) -> str | None:
    functional = requirement.functional
    if not isinstance(functional, Rate) or not len(costs.costs) or costs.costs.min() <= functional.threshold:
        return None
    return (
        f"no cost is {functional.threshold:g} or less (the lowest is {costs.costs.min():.4g}), so that every response "
        "counts as an event; rate:T counts costs above T, as rate:0.5"
    )


def _means_differ(counted: Measured, row: Mapping[str, Any]) -> str | None:
    """Return both means where clusters of unequal size make them differ by more than a standard error."""
    if row["unit"] == "prompt" or not counted.means.size:
        return None
    over_units, over_prompts = float(counted.means.mean()), float(counted.prompt_means.mean())
    error = estimates.standard_error(counted.means)
    if abs(over_units - over_prompts) <= error:
        return None
    return (
        f"the mean over clusters, which is claimed, is {over_units:.4g}, and the mean over prompts {over_prompts:.4g}: "
        f"they differ by more than a standard error ({error:.2g}), because large clusters have other costs"
    )
