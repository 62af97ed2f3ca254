"""What a method is told: the settings that every method takes, and the options of its own."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from dualign.errors import UsageError, nearest
from dualign.maths.dual import DualRule, fixed
from dualign.records import FloatArray

Options = Mapping[str, float | str]
"""Name -> value, every option of the method present."""
NO_OPTIONS: Options = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Settings:
    """How a method is run; it ignores what it has no use for."""

    rule: DualRule
    """What chooses the multipliers."""
    start: FloatArray
    """Shape ``[constraint]``: the first multipliers after 0, in the units of the problem."""
    loss: str = "dpo"
    """A name of ``c_dpo.RECIPES``; methods with a loss of their own take no other."""
    labels: str = "soft"
    """A name of ``losses.LABELS``."""
    temperature: float = 1.0
    """Of the labels; the policy that is sought stays that of the problem's beta."""
    options: Options = field(default_factory=dict)
    """The method's own; those not named have its defaults."""

    def at(self, multipliers: FloatArray) -> "Settings":
        """Return these settings with one policy, at ``multipliers``, and nothing to be searched."""
        return replace(self, rule=fixed(multipliers), start=multipliers)


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """Return the message about a name that is not ``known``."""
    return f"{what}: unknown {given!r}; {nearest(given, known)}"


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that an option allows, in words and as a test."""

    low: float = -math.inf
    high: float = math.inf
    low_included: bool = True
    high_included: bool = True
    whole: bool = False

    def __contains__(self, value: float) -> bool:
        """Return whether the finite number ``value`` lies between the ends, and is whole where that is asked for."""
        above = value >= self.low if self.low_included else value > self.low
        below = value <= self.high if self.high_included else value < self.high
        return math.isfinite(value) and above and below and (not self.whole or value == int(value))

    def __str__(self) -> str:
        """Return what is expected, for a message."""
        ends = []
        if math.isfinite(self.low):
            ends.append(f"{'from' if self.low_included else 'above'} {self.low:g}")
        if math.isfinite(self.high):
            ends.append(f"{'up to' if self.high_included else 'below'} {self.high:g}")
        return " ".join(["a whole number" if self.whole else "a number", *ends])


ANY = Range()
POSITIVE = Range(0, low_included=False)
NOT_NEGATIVE = Range(0)
COUNT = Range(1, whole=True)


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of a method."""

    name: str
    default: float | str
    """Its type is the option's type."""
    meaning: str
    choices: tuple[str, ...] = ()
    """The texts that are allowed; none: a number."""
    within: Range = ANY
    """Of a number."""

    @property
    def expected(self) -> str:
        """Return the values that are allowed, for a message."""
        return f"one of {', '.join(self.choices)}" if self.choices else str(self.within)

    def allows(self, value: float | str) -> bool:
        """Return whether ``value`` is of the option's kind and in range."""
        if self.choices:
            return value in self.choices
        return not isinstance(value, str | bool) and value in self.within


def filled(method: str, known: Sequence[Option], given: Mapping[str, float | str]) -> Options:
    """Return all options of ``method``: those ``given``, and the defaults of the others.

    Raises:
        UsageError: a name that the method does not know, a value of the wrong kind or out of range.
    """
    names = {option.name: option for option in known}
    for name, value in given.items():
        if name not in names:
            raise UsageError(unknown(f"option of {method}", name, names))
        if not names[name].allows(value):
            raise UsageError(f"option {name} of {method}: expected {names[name].expected}, got {value!r}")
    return MappingProxyType({option.name: given.get(option.name, option.default) for option in known})
