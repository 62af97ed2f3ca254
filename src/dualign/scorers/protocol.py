"""What a scorer is: (prompts, responses) -> one finite number each, with an identity."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from dualign.records import FloatArray, Prompt

Direction = Literal["reward", "cost"]


@runtime_checkable
class Scorer(Protocol):
    """Scores responses; a scorer that fails raises ``ScorerError`` and never returns a number."""

    @property
    def id(self) -> str:
        """What scorer this is, for reports and journal keys."""

    @property
    def revision(self) -> str:
        """Hash of all that determines its numbers."""

    @property
    def direction(self) -> Direction:
        """``reward``: up is good; ``cost``: up is bad. Stated by the caller, never read from a model."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[response]`` scores in raw units; ``prompts`` and ``responses`` are parallel."""
