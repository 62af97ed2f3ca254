"""Settings that one method has and others do not: named, with a default and a meaning, checked before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from dualign.errors import UsageError
from dualign.methods.nearest import unknown

Options = Mapping[str, float | str]
"""Name -> value, every option of the method present."""
NO_OPTIONS: Options = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of a method."""

    name: str
    default: float | str
    """Its type is the option's type."""
    meaning: str
    choices: tuple[str, ...] = ()
    """The texts that are allowed; none: a number."""


def filled(method: str, known: Sequence[Option], given: Mapping[str, float | str]) -> Options:
    """Return all options of ``method``: those ``given``, and the defaults of the others.

    Raises:
        UsageError: a name that the method does not know, or a value of the wrong kind.
    """
    names = {option.name: option for option in known}
    for name, value in given.items():
        if name not in names:
            raise UsageError(unknown(f"option of {method}", name, names))
        option = names[name]
        if option.choices and value not in option.choices:
            raise UsageError(f"option {name} of {method}: expected one of {', '.join(option.choices)}, got {value!r}")
        if not option.choices and (isinstance(value, str | bool)):
            raise UsageError(f"option {name} of {method}: expected a number, got {value!r}")
    return MappingProxyType({option.name: given.get(option.name, option.default) for option in known})
