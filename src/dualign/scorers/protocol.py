"""What a scorer is: (prompts, responses) -> one finite number each, with an identity."""

from collections.abc import Iterable, Sequence
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


def words_read(scorer: Scorer) -> int | None:
    """Return how many words of an answer a scorer reads at the most; none: all, as far as it says."""
    found = getattr(scorer, "words_read", None)
    return found if isinstance(found, int) else None


def fewest(limits: Iterable[int | None]) -> int | None:
    """Return the least of the limits that there are; none: there are none."""
    return min((limit for limit in limits if limit is not None), default=None)
