"""``kind: fitted``: a linear reward or cost model that ``dualign scorer fit`` wrote."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dualign.errors import ConfigError
from dualign.protocols import Direction, fewest
from dualign.records import FloatArray, Prompt
from dualign.scorers.spec import ScorerSpec, Setting

if TYPE_CHECKING:
    from dualign.scorers.fitting.linear import FittedHead


class FittedSpec(ScorerSpec):
    """Keys of ``kind: fitted``."""

    path: str
    """Folder that ``dualign scorer fit`` wrote."""
    fitted_as: Literal["reward", "cost"] | None = None
    """What the model was fitted as; only needed where it is used as the other, as a term of a sum with its own sign."""


@dataclass(frozen=True, slots=True)
class FittedScorer:
    """The score of a linear head on frozen features."""

    head: "FittedHead"
    direction: Direction
    name: str

    @property
    def id(self) -> str:
        """Return the kind and the folder's name."""
        return f"fitted({self.name})"

    @property
    def revision(self) -> str:
        """Return a hash of the head and its features."""
        return self.head.revision

    @property
    def words_read(self) -> int | None:
        """Return how many words of an answer are read at the most; none: all."""
        return fewest(getattr(block, "max_words", None) for block in self.head.features.values())

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[response]`` scores.

        Raises:
            ScorerError: a text is longer than the features' model was fitted for.
        """
        return self.head(prompts, responses)


def build(spec: FittedSpec, setting: Setting) -> FittedScorer:
    """Return the scorer that ``spec`` describes.

    Raises:
        ConfigError: it was fitted as a reward and is used as a cost, or the other way round.
        MissingError: the folder is not there, or the model of its features is not.
        DataError: the folder was damaged or altered.
    """
    from dualign.scorers.fitting.linear import load_head

    folder = setting.existing(spec.path, "scorer fitted")
    head = load_head(folder)
    if head.direction != (spec.fitted_as or setting.direction):
        raise ConfigError(
            f"scorer fitted: {folder.name} was fitted as a {head.direction} and is used as a {setting.direction}; "
            f"say 'fitted_as: {head.direction}' where another sign is meant, as in a sum with a negative weight"
        )
    return FittedScorer(head, setting.direction, folder.resolve().name)
