"""Constrained preference optimisation: requirements in, certificate out.

What is listed here is all that a user needs; heavy parts are imported when they are used.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from dualign.errors import DualignError
from dualign.records import Certificate, Constraint, Evaluation, Group, Iterate, Prompt, Response

if TYPE_CHECKING:
    from dualign.face.aligning import Comparison, align, compare
    from dualign.face.certifying import certify, e_value, upper_bound
    from dualign.face.planning import Plan, Solution, plan, solve
    from dualign.face.run import Run, TrainedPolicy, load_run
    from dualign.face.tasks import Limit
    from dualign.face.trainer import CDPOConfig, CDPOTrainer

__version__ = version("dualign")
__all__ = [
    "CDPOConfig",
    "CDPOTrainer",
    "Certificate",
    "Comparison",
    "Constraint",
    "DualignError",
    "Evaluation",
    "Group",
    "Iterate",
    "Limit",
    "Plan",
    "Prompt",
    "Response",
    "Run",
    "Solution",
    "TrainedPolicy",
    "__version__",
    "align",
    "certify",
    "compare",
    "e_value",
    "load_run",
    "plan",
    "solve",
    "upper_bound",
]


def __getattr__(name: str) -> Any:
    """Return a name of the face, whose modules are imported now."""
    if name in __all__:
        from dualign.face import aligning, certifying, planning, run, tasks, trainer

        for module in (aligning, certifying, planning, run, tasks, trainer):
            if name in vars(module):
                return vars(module)[name]
    raise AttributeError(f"module 'dualign' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names that a user sees."""
    return __all__
