"""The type checker of the suite: functions that state shapes are held to them, at every call a test makes.

``pyproject.toml`` names it to jaxtyping's import hook (``--jaxtyping-packages``). Functions without a shape stay as
they are: mypy has checked them, and beartype would refuse protocols and integers in the place of floats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args, get_type_hints

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

STRICT = BeartypeConf(is_pep484_tower=True)
"""An ``int`` may stand for a ``float``, as for mypy."""


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` checked at every call where it states a shape, else itself."""
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # names that only mypy imports: no shape stands among them
        return function
    stated = any(has_shape(hint) for hint in hints.values())
    return beartype(conf=STRICT)(function) if stated else function


def has_shape(hint: Any) -> bool:
    """Return whether a hint is an array of stated shape, or holds one."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(has_shape(part) for part in get_args(hint))
