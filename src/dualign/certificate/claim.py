"""What a certificate claims, in words: fixed before the calibration prompts are opened, sealed, and quoted afterwards.

Equal claims are equal strings: every number is exact, every text of somebody else's stands in quotation marks, on one
line. No torch.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dualign.errors import UsageError
from dualign.hashing import digest
from dualign.maths.functionals import Functional, Mean, Rate

METHODS = ("betting", "clopper-pearson")
LONGEST_TEXT = 400
"""Characters of a quoted text; a longer one is cut, and its hash put in the place of the rest."""
_SIMPLE_NAME = re.compile(r"[A-Za-z0-9_-]+")


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
    floor: float | None = None
    """Costs below it count as the floor, so that a few very low ones cannot pay for many high ones."""
    against: str = ""
    """What a relative limit is relative to, in words."""

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
    """Another order of the units; named in the claim, because the best of several orders is worth nothing."""
    decoding: str = ""
    method: str = "betting"
    """``betting``, or ``clopper-pearson`` for rates with one response a prompt."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Which look at the calibration prompts this is, and what it may spend."""

    number: int = 1
    """1 for the first."""
    planned: int | None = None
    """How many looks were planned beforehand: each may spend delta / planned."""
    cells: int | None = None
    """Cells of the comparison that this one belongs to, all fixed before any was opened: the first look of each spends
    delta, and says so."""
    counted: str = "in this run directory"
    """Where the looks were counted, in words."""

    def spent(self, delta: float) -> float:
        """Return the error probability of this look: ``delta / planned``, or ``0.9 * 0.1^(j-1) * delta``.

        The latter sums to delta however often the prompts are opened. The first look of a cell of a comparison is a
        claim of its own, and spends delta.
        """
        if self.planned is not None:
            return _rounded(delta / self.planned) if self.number <= self.planned else 0.0
        if self.cells is not None and self.number == 1:
            return delta
        return spent_delta(delta, self.number)


@dataclass(frozen=True, slots=True)
class Units:
    """The units of independence: which prompts stand and fall together."""

    cluster_of: Mapping[str, str]
    """Prompt id -> the smallest prompt id of its unit: clusters are known by what is in them, not by a name."""

    @classmethod
    def of(cls, names: Mapping[str, str]) -> "Units":
        """Return the units of prompt id -> name of its cluster, whatever the names are."""
        smallest: dict[str, str] = {}
        for prompt in sorted(names):
            smallest.setdefault(names[prompt], prompt)
        return cls({prompt: smallest[name] for prompt, name in names.items()})

    @property
    def word(self) -> Literal["cluster", "prompt"]:
        """Return what a unit is: a cluster, where some unit holds two prompts."""
        return "cluster" if any(unit != prompt for prompt, unit in self.cluster_of.items()) else "prompt"

    @property
    def prompts(self) -> str:
        """Return the hash of the set of prompts."""
        return prompts_hash(self.cluster_of)

    @property
    def partition(self) -> str:
        """Return the hash of which prompts are together: the sorted lists of the units' ids."""
        lists: dict[str, list[str]] = {}
        for prompt, unit in sorted(self.cluster_of.items()):
            lists.setdefault(unit, []).append(prompt)
        return digest(json.dumps(sorted(lists.values())))

    @property
    def in_words(self) -> str:
        """Return the unit as the claim names it."""
        if self.word == "prompt":
            return "prompt"
        count = len(set(self.cluster_of.values()))
        return f"cluster ({count} of {len(self.cluster_of)} prompts, partition {self.partition[:12]})"

    def places(self, units: Iterable[str], seed: int | None) -> list[str]:
        """Return the hashes that order the bets: of the seed, the set of prompts and each unit's smallest prompt.

        No cost, no name and no wording of the claim enters, so none can be tried until an order suits.
        """
        start = f"{seed or 0}\n{self.prompts}\n"
        return [digest(start, unit) for unit in units]


@dataclass(frozen=True, slots=True)
class Seal:
    """What was promised before opening: the claim and the prompts."""

    claim: str
    prompts: str
    """``prompts_hash`` of the calibration prompts."""

    @property
    def hash(self) -> str:
        """Return the SHA-256 that stands for claim and prompts."""
        return digest(self.prompts, "\n", self.claim)


def prompts_hash(prompt_ids: Iterable[str]) -> str:
    """Return the SHA-256 of the set of ``prompt_ids``; their order and repetition do not matter."""
    return digest(json.dumps(sorted(set(prompt_ids))))


def asked(by_limit: Mapping[str, Iterable[str]]) -> set[str]:
    """Return what is sealed: the ids of all prompts and, for each limit that is about some of them alone, which ones.

    A prompt that moves from the slice of one limit to that of another is another set of prompts for both.
    """
    sets = {name: set(ids) for name, ids in by_limit.items()}
    every = set().union(*sets.values())
    return every | {f"{name}\n{prompt}" for name, ids in sets.items() if ids != every for prompt in ids}


def seal(prompt_ids: Iterable[str], claim: str) -> Seal:
    """Return the seal of ``claim`` on the calibration prompts (``asked``), to be kept before any cost is seen."""
    return Seal(claim, prompts_hash(prompt_ids))


def spent_delta(delta: float, opening: int) -> float:
    """Return what the ``opening``-th look (from 1) may spend: ``0.9 * 0.1^(j-1) * delta``, which sums to delta."""
    return _rounded(0.9 * 0.1 ** (opening - 1) * delta)


def _rounded(value: float) -> float:
    """Return ``value`` to twelve digits, so that no rounding error is printed."""
    return float(f"{value:.12g}")


def state_claim(terms: Terms, ladder: Sequence[str], *, unit: str = "prompt") -> str:
    """Return the claim in words, all rungs in order: equal claims are equal strings.

    ``unit``: ``Units.in_words``.
    """
    policies = ", ".join(map(quoted, ladder))
    return f"{_limits(terms)} Policies, in the order of testing: {policies}.{_conditions(terms, unit)}"


def statement(terms: Terms, figures: Mapping[str, Any], *, unit: str) -> str:
    """Return what may be said now: of the certified policy alone, or what was tested and not shown.

    Args:
        terms: what was claimed.
        figures: of the certificate: ``verdict``, ``selected``, ``ladder``, ``opening``, ``delta_spent``, ``family``.
        unit: ``Units.in_words``.
    """
    ladder = figures["ladder"]
    conditions = _conditions(terms, unit) + _cost_of_looking(terms, figures)
    if figures["verdict"] == "CERTIFIED":
        chosen = next(row for row in ladder if row["policy"] == figures["selected"])
        return f"{_limits(terms, _policy(chosen))}{conditions}"
    tested = f" Tested on {_policy(ladder[0])}"
    if len(ladder) > 1:
        tested += f", the first of {len(ladder)} in the order of testing; after its failure no other was tested"
    return f"Not shown: {_limits(terms)}{tested}. The limit may hold, but these costs do not show it.{conditions}"


def _policy(row: Mapping[str, Any]) -> str:
    weights = f" (weights {row['weights']})" if "weights" in row else ""
    return f"policy {quoted(row['policy'])}{weights}"


def _limits(terms: Terms, policy: str | None = None) -> str:
    parts = [_limit_in_words(name, requirement, policy) for name, requirement in terms.requirements.items()]
    return f"With confidence {_exact(round(1 - terms.delta, 12))}: " + "; and ".join(parts) + "."


def _limit_in_words(name: str, requirement: Requirement, policy: str | None) -> str:
    ends = (("above", requirement.cap), ("below", requirement.floor))
    counted = ", ".join(f"each {side} {_exact(end)} counted as that" for side, end in ends if end is not None)
    where = ", ".join(f"{quoted(key)} = {quoted(value)}" for key, value in requirement.where.items())
    return "".join((
        f"the {requirement.functional.spec} of {name if _SIMPLE_NAME.fullmatch(name) else quoted(name)}",
        f" by {quoted(requirement.scorer)}" if requirement.scorer else "",
        f" of the answers of {policy}" if policy else "",
        f" against {requirement.against}" if requirement.against else "",
        f" over prompts with {where}" if where else "",
        f" ({counted})" if counted else "",
        f" is at most {_exact(requirement.limit)}",
    ))  # fmt: skip


def _conditions(terms: Terms, unit: str) -> str:
    decoding = f" Decoding: {quoted(terms.decoding)}." if terms.decoding else ""
    seed = "" if terms.seed is None else f" Order of the {unit.split(maxsplit=1)[0]}s: seed {terms.seed}."
    return f"{decoding} Unit: {unit}. Bound: {terms.method}.{seed}"


def _cost_of_looking(terms: Terms, figures: Mapping[str, Any]) -> str:
    """Return a sentence on the error probability of this opening, where it differs from the claim's."""
    family = figures.get("family")
    alone = f" For this cell alone, of {family['cells']} in its comparison." if family else ""
    if figures["delta_spent"] == terms.delta:
        return alone
    spent = _exact(figures["delta_spent"])
    return f" Opening {figures['opening']} of these prompts, tested at an error probability of {spent}.{alone}"


def assumptions(terms: Terms, unit: str, opening: Opening | None) -> list[str]:
    """Return what the certificate rests on and cannot check."""
    scorers = ", ".join(sorted({quoted(r.scorer) for r in terms.requirements.values() if r.scorer}))
    return [
        f"The {unit}s are independent draws from the population that the claim is about; each weighs equally.",
        "No earlier step (training, tuning, choosing, ordering) has seen these prompts' costs.",
        _looks(terms.delta, opening),
        f"Scorer ({scorers or 'the one behind the costs'}) and decoding are those of the claim, and each response was "
        "drawn independently.",
    ]


def _looks(delta: float, opening: Opening | None) -> str:
    if opening is None:
        return "The costs of this split have been opened once."
    if opening.cells is not None and opening.number == 1:
        return (
            f"The costs of this split have been opened once, for this cell alone: one of {opening.cells} that were "
            f"fixed before any was opened. Who picks the best of them needs delta / {opening.cells} = "
            f"{_exact(_rounded(delta / opening.cells))}."
        )
    planned = "" if opening.planned is None else f" of {opening.planned} planned"
    return (
        f"The costs of this split have been opened {opening.number} time(s){planned}, counted {opening.counted} only; "
        f"this opening may spend {_exact(opening.spent(delta))} of {_exact(delta)}. Valid if what changed in between "
        "depends on earlier verdicts alone, not on the costs themselves."
    )


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
        _check_requirement(name, requirement)


def _check_requirement(name: str, requirement: Requirement) -> None:
    limit, cap, floor = requirement.limit, requirement.counted_cap, requirement.floor
    if requirement.cap is not None and not math.isfinite(requirement.cap):
        raise UsageError(f"cap of {name}: must be a finite number; given {requirement.cap}")
    if not math.isfinite(cap):
        raise UsageError(f"cap of {name}: missing; costs must have a largest value that counts, as {name}=50")
    if not math.isfinite(limit) or limit >= cap:
        must = f"must be a finite number below its cap {cap:g}, or every policy meets it"
        raise UsageError(f"limit of {name}: {must}; given {limit:g}")
    if isinstance(requirement.functional, Rate) and limit < 0:
        raise UsageError(f"limit of {name}: a rate is never below 0; given {limit:g}")
    if floor is not None and not (math.isfinite(floor) and floor < limit):
        raise UsageError(f"floor of {name}: must be a finite number below its limit {limit:g}; given {floor:g}")


def quoted(text: str) -> str:
    """Return ``text`` in quotation marks: one line, bounded, nothing in it that could drive a terminal."""
    if len(text) > LONGEST_TEXT:
        text = f"{text[: LONGEST_TEXT - 40]}... (SHA-256 {digest(text)[:16]})"
    said = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in said)


def _exact(value: float) -> str:
    """Return the shortest text that reads back as the same number."""
    return repr(float(value)).removesuffix(".0")
