"""A fitted head with its features: scores answers, and is kept in a folder without pickle.

``fitted.json`` holds what the features are, ``fitted.safetensors`` the numbers (float64).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from dualign.errors import DataError, MissingError
from dualign.records import FloatArray, Prompt
from dualign.runs.store import write_bytes, write_json
from dualign.scorers.fitting.hidden import StateFeatures
from dualign.scorers.fitting.linear import LinearHead
from dualign.scorers.fitting.tfidf import TfidfFeatures
from dualign.scorers.protocol import Direction
from dualign.scorers.spec import revision_of

FORMAT = "dualign-fitted-1"
HEAD, WEIGHTS = "fitted.json", "fitted.safetensors"


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


FEATURES: dict[str, type[Features]] = {"tfidf": TfidfFeatures, "states": StateFeatures}


@dataclass(frozen=True)
class FittedHead:
    """score = bias + sum over the blocks of weights . features."""

    features: Mapping[str, Features]
    """By name in ``FEATURES``."""
    weights: Mapping[str, FloatArray]
    bias: float
    direction: Direction
    """What it was fitted as."""
    objective: str
    """Name in ``objective.OBJECTIVES``."""

    @classmethod
    def of(cls, features: Mapping[str, Features], widths: Sequence[int], head: LinearHead, **facts: Any) -> Self:
        """Return the head whose weights stand one block after the other, ``widths`` wide."""
        parts = np.split(head.weights, np.cumsum(widths)[:-1])
        return cls(features, dict(zip(features, parts, strict=True)), head.bias, **facts)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[answer]`` scores."""
        total = np.full(len(responses), self.bias)
        if responses:
            for name, block in self.features.items():
                total = total + np.asarray(block(prompts, responses) @ self.weights[name]).ravel()
        return total

    @property
    def revision(self) -> str:
        """Return a hash of all that determines the numbers."""
        digest = hashlib.sha256()
        for name, value in sorted(self._tensors().items()):
            digest.update(f"{name}\n".encode() + np.ascontiguousarray(value, "<f8").tobytes())
        return revision_of(head=self._facts(), weights=digest.hexdigest())

    def save(self, folder: Path) -> None:
        """Write both files into ``folder``."""
        from safetensors.numpy import save

        write_bytes(folder / WEIGHTS, save(self._tensors()))
        write_json(folder / HEAD, {**self._facts(), "revision": self.revision})

    def _facts(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "direction": self.direction,
            "objective": self.objective,
            "bias": self.bias,
            "features": {name: block.to_json() for name, block in self.features.items()},
        }

    def _tensors(self) -> dict[str, FloatArray]:
        arrays = {f"{name}.weights": values for name, values in self.weights.items()}
        for name, block in self.features.items():
            arrays |= {f"{name}.{key}": value for key, value in block.tensors().items()}
        return {name: np.ascontiguousarray(value, dtype=np.float64) for name, value in arrays.items()}


def load_head(folder: Path) -> FittedHead:
    """Return the head of a folder, with the very numbers that were saved.

    Raises:
        MissingError: a file is missing, or the model of its features is.
        DataError: a file is damaged, of another format, or was altered; or the model is another one by now.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    for name in (HEAD, WEIGHTS):
        if not (folder / name).is_file():
            raise MissingError(f"{folder}: no {name}; a folder written by 'dualign scorer fit' is needed")
    try:
        head = json.loads((folder / HEAD).read_bytes())
        arrays = load((folder / WEIGHTS).read_bytes())
        if head["format"] != FORMAT:
            raise DataError(f"{folder}: format {head['format']!r}; {FORMAT} is needed")
        fitted = FittedHead(
            features={name: FEATURES[name].load(facts, _own(arrays, name)) for name, facts in head["features"].items()},
            weights={name: arrays[f"{name}.weights"] for name in head["features"]},
            bias=float(head["bias"]),
            direction=head["direction"],
            objective=head["objective"],
        )
        intact = head["revision"] == fitted.revision
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise DataError(f"{folder}: a damaged fitted scorer ({type(error).__name__}: {error})") from error
    if not intact:
        raise DataError(f"{folder}: the fitted scorer was altered; fit it again or restore it")
    return fitted


def _own(arrays: Mapping[str, FloatArray], name: str) -> dict[str, FloatArray]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
