"""Constrained preference optimisation: requirements in, certificate out.

What is listed here is all that a user needs; heavy parts are imported when they are used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from dualign.errors import DualignError
from dualign.records import Certificate, Constraint, Evaluation, Group, Iterate, Prompt, Response

if TYPE_CHECKING:
    from dualign.face.figures import Plan, Solution, certify, e_value, plan, solve, upper_bound

__version__ = version("dualign")
LATER = {
    "figures": ("Plan", "Solution", "certify", "e_value", "plan", "solve", "upper_bound"),
}
"""Module of ``dualign.face`` -> the names of it that stand here, imported at their first use."""
__all__ = [
    "Certificate",
    "Constraint",
    "DualignError",
    "Evaluation",
    "Group",
    "Iterate",
    "Plan",
    "Prompt",
    "Response",
    "Solution",
    "__version__",
    "certify",
    "e_value",
    "plan",
    "solve",
    "upper_bound",
]


def __getattr__(name: str) -> Any:
    """Return a name of the face, imported now."""
    for module, names in LATER.items():
        if name in names:
            return getattr(import_module(f"dualign.face.{module}"), name)
    raise AttributeError(f"module 'dualign' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names that a user sees."""
    return __all__
