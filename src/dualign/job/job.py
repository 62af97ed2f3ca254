"""A job: every part that a config names, made and ready to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dualign.config import Config
from dualign.maths.functionals import Functional
from dualign.protocols import Backend, Policy, Scorer
from dualign.records import Constraint, FloatArray, Prompt, Response
from dualign.runs.journal import Journal

Tell = Callable[[str], None]
"""Shows one line of progress."""


@dataclass(frozen=True)
class Job:
    """All parts of one job."""

    config: Config
    run: Path
    journal: Journal
    backend_at: Callable[[Path], Backend]
    """Folder -> the backend that writes its policies there."""
    reference: Policy
    identity: str
    """Hash of what makes the reference and how policies are fitted and sampled: part of every key."""
    splits: Mapping[str, Sequence[Prompt]]
    """With given pairs, ``train`` holds their prompts."""
    constraints: tuple[Constraint, ...]
    functionals: tuple[Functional, ...]
    reward: Scorer
    costs: tuple[Scorer, ...]
    metrics: Mapping[str, Scorer] = field(default_factory=dict)
    """Further scorers, shown in the comparison on report prompts."""
    judges: Mapping[str, Scorer] = field(default_factory=dict)
    """Independent scorers of the reward (``reward``) and of constraints (their name), asked on report prompts."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What was found out while the job was put together: data/summary.json."""
    pairs: Sequence[tuple[Prompt, Response, Response]] = ()
    """Given pairs to train on; none: the reference's own samples."""
    decoding: str = ""
    """What the claim says of decoding besides temperature and lengths: the template's arguments, what scorers see."""
    tell: Tell = print

    @property
    def names(self) -> list[str]:
        """Return the constraints' names."""
        return [constraint.name for constraint in self.constraints]

    @property
    def backend(self) -> Backend:
        """Return the backend for reading policies; what it fits would go to the run's own folder."""
        return self.backend_at(self.run)

    def named(self, values: FloatArray) -> dict[str, float]:
        """Return ``[constraint]`` values by name."""
        return dict(zip(self.names, (float(value) for value in values), strict=True))
