"""``kind: fitted``: a linear reward or cost model on frozen features, as ``dualign scorer fit`` writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np

from dualign.errors import ConfigError
from dualign.protocols import Direction, fewest
from dualign.records import FloatArray, Prompt
from dualign.scorers.spec import ScorerSpec, Setting, revision_of
from dualign.scorers.states import StateFeatures
from dualign.scorers.tfidf import Tfidf, array_digest, read_learned, write_learned

FORMAT, NAME = "dualign-fitted-1", "fitted"


class Features(Protocol):
    """Numbers of an answer, fixed once they are made."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Any:
        """Return the ``[answer, feature]`` matrix, dense or sparse."""

    def to_json(self) -> dict[str, Any]:
        """Return all but the arrays."""

    def tensors(self) -> dict[str, FloatArray]:
        """Return the arrays."""

    @classmethod
    def load(cls, head: Mapping[str, Any], tensors: Mapping[str, FloatArray]) -> Self:
        """Return the features that the other two told of."""


FEATURES: dict[str, type[Features]] = {"tfidf": Tfidf, "states": StateFeatures}


class FittedSpec(ScorerSpec):
    """Keys of ``kind: fitted``."""

    path: str
    """Folder that ``dualign scorer fit`` wrote."""
    fitted_as: Literal["reward", "cost"] | None = None
    """What the model was fitted as; only needed where it is used as the other, as a term of a sum with its own sign."""


@dataclass(frozen=True)
class FittedScorer:
    """score = bias + sum over the blocks of weights . features."""

    features: Mapping[str, Features]
    """By name in ``FEATURES``."""
    weights: Mapping[str, FloatArray]
    bias: float
    fitted_as: Direction
    objective: str
    """Name in ``linear.OBJECTIVES``."""
    direction: Direction
    """What it is used as."""
    name: str = ""
    """Of its folder."""

    @property
    def id(self) -> str:
        """Return the kind and the folder's name."""
        return f"fitted({self.name})"

    @property
    def words_read(self) -> int | None:
        """Return how many words of an answer are read at the most; none: all."""
        return fewest(getattr(block, "max_words", None) for block in self.features.values())

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[response]`` scores.

        Raises:
            ScorerError: a text is longer than the features' model was fitted for.
        """
        total = np.full(len(responses), self.bias)
        for name, block in self.features.items():
            total = total + np.asarray(block(prompts, responses) @ self.weights[name]).ravel()
        return total

    @property
    def revision(self) -> str:
        """Return a hash of the head and its features, all that determines the numbers."""
        parts = [part for name, value in sorted(self._tensors().items()) for part in (f"{name}\n", value)]
        return revision_of(head=self._facts(), weights=array_digest(*parts))

    def save(self, folder: Path) -> None:
        """Write both files into ``folder``."""
        write_learned(folder, NAME, {**self._facts(), "revision": self.revision}, self._tensors())

    def _facts(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "direction": self.fitted_as,
            "objective": self.objective,
            "bias": self.bias,
            "features": {name: block.to_json() for name, block in self.features.items()},
        }

    def _tensors(self) -> dict[str, FloatArray]:
        blocks = {f"{n}.{key}": value for n, block in self.features.items() for key, value in block.tensors().items()}
        return {**{f"{name}.weights": values for name, values in self.weights.items()}, **blocks}


def build(spec: FittedSpec, setting: Setting) -> FittedScorer:
    """Return the scorer that ``spec`` describes, with the very numbers that were saved.

    Raises:
        ConfigError: it was fitted as a reward and is used as a cost, or the other way round.
        MissingError: the folder or a file is not there, or the model of its features is not.
        DataError: a file is damaged, of another format, or was altered; or the model is another one by now.
    """
    folder = setting.existing(spec.path, "scorer fitted")

    def made(head: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> FittedScorer:
        blocks = head["features"]
        return FittedScorer(
            features={name: FEATURES[name].load(facts, _own(arrays, name)) for name, facts in blocks.items()},
            weights={name: arrays[f"{name}.weights"] for name in blocks},
            bias=float(head["bias"]),
            fitted_as=head["direction"],
            objective=head["objective"],
            direction=setting.direction,
            name=folder.resolve().name,
        )

    fitted = read_learned(folder, NAME, made, form=FORMAT, what="fitted scorer", written_by="'dualign scorer fit'")
    if fitted.fitted_as != (spec.fitted_as or setting.direction):
        raise ConfigError(
            f"scorer fitted: {folder.name} was fitted as a {fitted.fitted_as} and is used as a {setting.direction}; "
            f"say 'fitted_as: {fitted.fitted_as}' where another sign is meant, as in a sum with a negative weight"
        )
    return fitted


def _own(arrays: Mapping[str, FloatArray], name: str) -> dict[str, FloatArray]:
    return {key.removeprefix(f"{name}."): value for key, value in arrays.items() if key.startswith(f"{name}.")}
