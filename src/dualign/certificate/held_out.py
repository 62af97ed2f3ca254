"""Held-out costs as a certificate counts them, and the warnings that it gives about them. No torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualign.certificate.claim import Requirement, Units, quoted
from dualign.maths import estimates
from dualign.maths.functionals import Rate
from dualign.records import FloatArray

FEW = 0.05
"""A certificate that rests on fewer units than this share of them is warned of."""


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

    costs: Costs
    requirement: Requirement
    transformed: FloatArray
    """Shape ``[response]``: the functional's terms, in the order of prompts and values."""
    values: FloatArray
    """Shape ``[response]``: ``transformed`` between floor and cap."""
    ids: NDArray[np.str_]
    """Shape ``[response]``: prompt of each value."""
    prompt_means: FloatArray
    """Shape ``[prompt]``."""
    means: FloatArray
    """Shape ``[unit]``, in the order of the bets: responses are averaged first, then the prompts of a cluster."""
    units: list[str]
    """Smallest prompt of each unit, in the order of ``means``."""

    @property
    def events(self) -> int | None:
        """Return the number of events, where each unit is one or none; else None."""
        single = self.means.size == self.values.size and self.requirement.counted_cap == 1.0
        return int(np.count_nonzero(self.values)) if single and np.isin(self.values, (0.0, 1.0)).all() else None

    @property
    def responses(self) -> NDArray[np.intp]:
        """Return the number of responses of each prompt."""
        return np.unique(self.ids, return_counts=True)[1]


def measured(costs: Costs, requirement: Requirement, units: Units, seed: int | None) -> Measured:
    """Return the costs as they count, one value a unit of independence in the order of the bets."""
    transformed = requirement.functional.transform(costs.costs, costs.reference)
    prompts = np.asarray(costs.prompts, dtype=np.str_)
    order = np.lexsort((transformed, prompts))
    transformed, ids = transformed[order], prompts[order]
    floor = -math.inf if requirement.floor is None else requirement.floor
    values = np.clip(transformed, floor, requirement.counted_cap)
    names, place = np.unique(ids, return_inverse=True)
    prompt_means = estimates.prompt_means(values, place)
    kept, unit_place = np.unique([units.cluster_of[str(name)] for name in names], return_inverse=True)
    means = estimates.prompt_means(prompt_means, unit_place)
    by_hash = np.argsort(units.places(map(str, kept), seed))
    in_order = [str(kept[k]) for k in by_hash]
    return Measured(costs, requirement, transformed, values, ids, prompt_means, means[by_hash], in_order)


def cautions(counted: Mapping[str, Measured], figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the warnings that a reader should see before relying on the verdict."""
    looks = (_few_carry_it, _unequal_responses, _cap_below_all, _always_above, _means_differ)
    return [
        f"{name}: {line}" for name, costs in counted.items() for look in looks if (line := look(costs, figures[name]))
    ]


def _few_carry_it(counted: Measured, row: Mapping[str, Any]) -> str | None:
    """Return a warning where the mean would lie above the limit without the lowest costs of a few units."""
    means, limit = counted.means, row["limit"]
    if not row["passed"] or means.size < 2:
        return None
    ranks = np.argsort(means, kind="stable")
    for count in range(1, math.ceil(FEW * means.size) + 1):
        raised = np.maximum(means, means[ranks[count]]).mean()
        if raised > limit:
            names = ", ".join(quoted(counted.units[k]) for k in ranks[:count][:5])
            return (
                f"{count} of {means.size} {row['unit']}s carry the certificate (lowest cost "
                f"{means[ranks[0]]:.4g}; {names}{', ...' if count > 5 else ''}): with the next lowest cost in their "
                f"place the mean is {raised:.4g}, above the limit {limit:g}; a floor (--floor, or floor in the "
                "config), fixed before opening, bounds what one can pay for"
            )
    return None


def _unequal_responses(counted: Measured, _: Mapping[str, Any]) -> str | None:
    counts = counted.responses
    if not counts.size or counts.min() == counts.max():
        return None
    return (
        f"prompts have {counts.min()} to {counts.max()} responses; each prompt weighs equally, and if the number "
        "depends on the costs (failed or filtered responses) the estimate is biased"
    )


def _cap_below_all(counted: Measured, _: Mapping[str, Any]) -> str | None:
    requirement = counted.requirement
    if requirement.cap is None or not counted.values.size or isinstance(requirement.functional, Rate):
        return None
    if counted.transformed.min() < requirement.counted_cap:
        return None
    return f"every cost is at or above the cap {requirement.cap:g}: nothing could be certified; is it in their units?"


def _always_above(counted: Measured, _: Mapping[str, Any]) -> str | None:
    functional, costs = counted.requirement.functional, counted.costs.costs
    if not isinstance(functional, Rate) or not len(costs) or costs.min() <= functional.threshold:
        return None
    return (
        f"no cost is {functional.threshold:g} or less (the lowest is {costs.min():.4g}), so that every response "
        "counts as an event; rate:T counts costs above T, as rate:0.5"
    )


def _means_differ(counted: Measured, row: Mapping[str, Any]) -> str | None:
    """Return a warning where clusters of unequal size make the two means differ by more than a standard error."""
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
