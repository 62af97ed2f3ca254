"""``certify``, ``upper_bound``, ``e_value``: from held-out numbers to a verdict. No torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from dualign.errors import ArgumentError, nearest
from dualign.face.inputs import Named, Rows, by_name, is_table, number, numbers, table_in
from dualign.maths import bounds
from dualign.records import Certificate, FloatArray, prompt_id

if TYPE_CHECKING:
    from dualign.certificate.claim import Requirement
    from dualign.data.score_file import CostFile
    from dualign.maths.functionals import Functional

LARGEST_LOOK = 20_000
"""More prompts are not searched for near-copies: it would take longer than the certificate."""


# --- bounds -------------------------------------------------------------------------------------------


def upper_bound(
    values: ArrayLike,
    *,
    cap: float,
    delta: float = 0.05,
    method: str = "betting",
    floor: float | None = None,
    seed: int = 0,
) -> float:
    """Return an upper bound on the mean that holds with probability ``1 - delta``; infinity without data.

    Args:
        values: one number a prompt (average its responses first), none above ``cap``.
        cap: largest value there can be.
        delta: one minus the confidence.
        method: ``betting`` (what the certificate uses), ``clopper-pearson`` (values 0 or 1), or to compare with:
            ``hoeffding``, ``maurer-pontil`` (both need ``floor``), ``clustered-t`` (asymptotic: no guarantee).
        floor: smallest value there can be.
        seed: another order of the bets; fix it before you see a value.

    Raises:
        ArgumentError: a value that is no finite number or above the cap, another shape, an impossible argument. It is
            a ``ValueError`` too.
    """
    known = [*bounds.BOUNDS, "clopper-pearson"]
    if method not in known:
        raise ArgumentError(f"method: unknown {method!r}; {nearest(method, known)}")
    data = _in_order(values, cap, delta, seed)
    if method in ("hoeffding", "maurer-pontil"):
        if floor is None or number("floor", floor) >= cap:
            raise ArgumentError(f"floor: {method} needs the smallest value there can be, below the cap; given {floor}")
        if data.size and data.min() < floor:
            raise ArgumentError(f"values: {data.min():g} is below the floor {floor:g}")
    if method == "clopper-pearson" and (cap != 1 or not np.isin(data, (0.0, 1.0)).all()):
        raise ArgumentError("method: clopper-pearson counts events: values of 0 or 1 and cap=1 are needed")
    if not data.size:
        return math.inf
    if method == "clopper-pearson":
        return bounds.clopper_pearson(int(np.count_nonzero(data)), data.size, delta=delta)
    return float(bounds.BOUNDS[method](data, cap=cap, floor=-math.inf if floor is None else floor, delta=delta))


def e_value(values: ArrayLike, *, limit: float, cap: float, delta: float = 0.05, seed: int = 0) -> float:
    """Return the evidence against "the mean is at least ``limit``": rejected from ``1 / delta`` on; 1 without data.

    Args:
        values: one number a prompt (average its responses first), none above ``cap``.
        limit: what the mean is claimed to be below; itself below the cap.
        cap: largest value there can be.
        delta: error probability that the bets aim at; the value stops at about ``1 / delta``.
        seed: another order of the bets; fix it before you see a value.

    Raises:
        ArgumentError: as ``upper_bound``.
    """
    data = _in_order(values, cap, delta, seed)
    if number("limit", limit) >= cap:
        raise ArgumentError(f"limit: must be below the cap {cap:g}, or every policy meets it; given {limit:g}")
    return float(bounds.betting_e_value(data, limit, cap=cap, delta=delta)) if data.size else 1.0


def _in_order(values: ArrayLike, cap: float, delta: float, seed: int) -> FloatArray:
    """Return checked values in the order in which the certificate bets on as many prompts named 1, 2, ..."""
    from dualign.certificate.claim import Units

    data = numbers("values", values)
    highest = number("cap", cap)
    if data.size and data.max() > highest:
        raise ArgumentError(f"values: {data.max():g} is above the cap {highest:g}; clip, or name a larger cap")
    if not 0 < number("delta", delta) < 1:
        raise ArgumentError(f"delta: must lie strictly between 0 and 1; given {delta:g}")
    ids = [prompt_id(str(position)) for position in range(1, data.size + 1)]
    places = Units.of(dict(zip(ids, ids, strict=True))).places(ids, _seed(seed))
    return data[np.argsort(places)] if ids else data


def _seed(seed: int | None) -> int | None:
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0):
        raise ArgumentError(f"seed: must be a whole number of 0 or more; given {seed!r}")
    return None if seed is None else int(seed)


# --- certify ------------------------------------------------------------------------------------------


def certify(
    costs: "CostFile | Rows | ArrayLike | str | Path",
    *,
    limit: Named,
    cap: Named | None = None,
    functional: str | Mapping[str, str] | None = None,
    floor: Named | None = None,
    confidence: float = 0.95,
    order: Sequence[str] | None = None,
    seed: int | None = None,
    method: str = "betting",
    scorer: str = "",
    decoding: str = "",
    seal: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    finish: Callable[[Certificate], object] | None = None,
) -> Certificate:
    """Return whether limits hold on the costs of held-out prompts, with confidence.

    What is returned has ``verdict``, ``statement`` (what may be said now), ``upper_bounds``, ``selected``, and in
    ``figures`` the object that ``dualign certify --json`` prints.

    Args:
        costs: one number a prompt; name -> such numbers; rows (frame, data set, list of mappings) of ``prompt``,
            ``cost`` or ``cost_NAME``, optional ``policy`` (a ladder, safest first) and ``cluster``; or a file of them.
            Numbers without prompts are those of prompts named 1, 2, ...
        limit: largest allowed value; with several costs ``{name: limit}``, and so are ``cap``, ``functional``,
            ``floor``.
        cap: costs above it count as it; needed by all but ``rate``.
        functional: ``mean`` (the default), ``rate`` (share of costs above 0), ``rate:T`` (above T),
            ``cvar:ALPHA:THRESHOLD``.
        floor: costs below it count as it.
        confidence: probability that the claim is right, ``1 - delta``.
        order: policies in the order of testing; none: that of their first rows.
        seed: another order of the prompts; named in the claim.
        method: ``betting``, or ``clopper-pearson`` for a rate with one response a prompt.
        scorer: what gave the costs; part of the claim.
        decoding: how responses were drawn; part of the claim.
        seal: file that is written at the first opening and kept to at later ones.
        columns: column of the table by the name it is read as, ``{"cost": "harm_score"}``.
        finish: called with the certificate before the opening is recorded in the seal file; what it raises opens
            nothing.

    Raises:
        ArgumentError, UsageError: an argument that cannot be claimed.
        DataError: a row that is wrong; it is named.
    """
    from dualign.certificate.certify import certify as test
    from dualign.certificate.certify import checked_units
    from dualign.certificate.claim import Terms

    if not 0 < number("confidence", confidence) < 1:
        hint = f"; did you mean {confidence / 100:g}?" if 1 < confidence < 100 else ""
        raise ArgumentError(f"confidence: must lie strictly between 0 and 1; given {confidence:g}{hint}")
    content = _costs(costs, columns)
    ladder = _ladder(content, order)
    requirements = _requirements(content.names, limit, scorer, cap=cap, functional=functional, floor=floor)
    terms = Terms(requirements, round(1 - confidence, 12), _seed(seed), decoding, method)
    observations = {policy: content.costs[policy] for policy in ladder}
    units = checked_units(observations, terms)

    def finished(certificate: Certificate) -> Certificate:
        told = [_with_texts(line, content) for line in certificate.figures["warnings"]]
        figures = {**certificate.figures, "warnings": [*told, *_near_copies(content)]}
        found = replace(certificate, figures=figures)
        if finish is not None:
            finish(found)
        return found

    if seal is None:
        return finished(test(observations, terms))
    from dualign.face.seal_file import certify_sealed

    return certify_sealed(observations, terms, units, Path(seal), finished)


def _costs(given: Any, columns: Mapping[str, str] | None) -> "CostFile":
    """Return the costs of a file, of rows, or of numbers alone."""
    from dualign.data.score_file import PREFIX, PROMPTS, CostFile, read_costs

    if isinstance(given, CostFile):
        return given
    if isinstance(given, str | Path):
        return read_costs(given, columns=columns)
    if not is_table(given):
        given = {"cost": given}
    if isinstance(given, Mapping) and not columns and not set(PROMPTS) & set(given):
        named = {str(name): numbers(f"costs: {name}", values) for name, values in given.items()}
        table = {n if n == "cost" or n.startswith(PREFIX) else PREFIX + n: named[n] for n in named}
        longest = max(map(len, table.values()), default=0)
        given = {"prompt": [str(position) for position in range(1, longest + 1)], **table}
    return read_costs(table_in("costs", given), columns=columns)


def _ladder(content: "CostFile", order: Sequence[str] | None) -> list[str]:
    """Return the policies in the order of testing."""
    policies = list(content.costs)
    if order is None:
        return policies
    if not content.policy_column:
        raise ArgumentError("order: there is no column 'policy'; leave order out")
    for name in order:
        if name not in policies:
            raise ArgumentError(f"order: unknown policy {name!r}; {nearest(name, policies)}")
    if len(set(order)) != len(order):
        raise ArgumentError(f"order: a policy is named twice; given {', '.join(order)}")
    left_out = [name for name in policies if name not in order]
    if left_out:
        raise ArgumentError(f"order: every policy must be named; left out: {', '.join(left_out)}")
    return list(order)


def _requirements(
    names: Sequence[str], limit: Named, scorer: str, **others: Named | str | Mapping[str, str] | None
) -> "dict[str, Requirement]":
    """Return the requirement of every cost that has a limit; a value alone is of the one cost, or of all (mean)."""
    from dualign.certificate.claim import Requirement
    from dualign.maths.functionals import Mean

    bare = "cost" if list(names) == ["cost"] else None
    limits = {name: number("limit", value) for name, value in by_name("limit", limit, names, bare=bare).items()}
    given: dict[str, dict[str, Any]] = {}
    for argument, value in others.items():
        given[argument] = {} if value is None else by_name(argument, value, names, bare=bare)
        extra = [name for name in given[argument] if name not in limits]
        if extra:
            raise ArgumentError(f"{argument}: {extra[0]!r} has no limit; give it one, or leave its {argument} out")
    cap, floor = ({n: number(a, v) for n, v in given[a].items()} for a in ("cap", "floor"))
    functional = {name: _functional(text) for name, text in given["functional"].items()}
    return {
        name: Requirement(value, cap.get(name), functional.get(name, Mean()), scorer, floor=floor.get(name))
        for name, value in limits.items()
    }


def _functional(text: str) -> "Functional":
    from dualign.maths.functionals import FUNCTIONALS, ConditionalValueAtRisk, parse

    if (kind := text.strip().split(":")[0]) not in FUNCTIONALS:
        raise ArgumentError(f"functional: unknown functional {kind!r}; {nearest(kind, FUNCTIONALS)}")
    try:
        functional = parse(text)
    except ValueError as error:
        raise ArgumentError(f"functional: {error}") from error
    if functional.spec == "relative":
        raise ArgumentError("functional relative: costs have no reference; write the differences as the cost")
    if isinstance(functional, ConditionalValueAtRisk) and functional.threshold is None:
        raise ArgumentError(f"functional {text}: add the threshold fixed beforehand, as {text}:1.5")
    return functional


def _with_texts(line: str, content: "CostFile") -> str:
    """Return a warning with the first words of the prompts that it names by their ids."""
    from dualign.certificate.claim import quoted

    for name, prompt in content.asked.items():
        if name in line:
            line = line.replace(quoted(name), quoted(prompt.text[:40]))
    return line


def _near_copies(content: "CostFile") -> list[str]:
    """Return a warning where prompts resemble each other and no cluster says that they belong together."""
    from dualign.certificate.claim import quoted
    from dualign.data.splits import near_clusters

    first = next(iter(next(iter(content.costs.values())).values()))
    # what has no four words is a name of a prompt, and names resemble each other
    told = [p for p in content.asked.values() if p.history or len(p.text.split()) > 3 or not p.text.isascii()]
    if first.clusters is not None or len(told) > LARGEST_LOOK:
        return []
    clusters = near_clusters(told)
    count = len(clusters) - len(set(clusters.values()))
    if not count:
        return []
    copy = next(name for name, cluster in clusters.items() if name != cluster)
    return [
        f"{count} of {len(clusters)} prompts are near-copies of another one and count as independent here (for example "
        f"{quoted(content.asked[copy].text[:60])}): give near-copies one name in a column 'cluster'"
    ]
