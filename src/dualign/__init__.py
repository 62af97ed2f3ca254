"""Constrained preference optimisation: requirements in, certificate out."""

from importlib.metadata import version

from dualign.errors import DualignError
from dualign.records import Certificate, Constraint, Evaluation, Group, Iterate, Prompt, Response

__version__ = version("dualign")
__all__ = [
    "Certificate",
    "Constraint",
    "DualignError",
    "Evaluation",
    "Group",
    "Iterate",
    "Prompt",
    "Response",
    "__version__",
]
