"""What a fit minimises, one function a kind of labels and one table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import minimize
from torch import Tensor

from dualign.errors import DataError, MissingError, NumericalError
from dualign.maths.losses import cost_model_loss, reward_model_loss
from dualign.protocols import Direction
from dualign.records import FloatArray, Prompt
from dualign.runs.store import write_bytes, write_json
from dualign.scorers.fitting.hidden import StateFeatures
from dualign.scorers.lexical import features, learn
from dualign.scorers.spec import revision_of

ScoreLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(scores of the higher answers, of the lower, signs of the higher, of the lower) -> losses; each ``[pair]``."""


def pairs(*, regularisation: float) -> ScoreLoss:
    """Return the loss of the order alone; signs are not read."""
    return lambda higher, lower, *_: reward_model_loss(higher, lower, regularisation=regularisation)


def pairs_and_signs(*, regularisation: float) -> ScoreLoss:
    """Return the loss of the order and of the sign of either cost."""

    def loss(higher: Tensor, lower: Tensor, higher_sign: Tensor, lower_sign: Tensor) -> Tensor:
        return cost_model_loss(higher, lower, higher_sign, lower_sign, regularisation=regularisation)

    return loss


OBJECTIVES: dict[str, Callable[..., ScoreLoss]] = {"pairs": pairs, "pairs-and-signs": pairs_and_signs}

ZERO = {
    "reward": "the zero of a reward is arbitrary: only differences between answers to one prompt mean something",
    "pairs": "the zero of this cost is arbitrary, because no answer has a safety flag: a limit of 0 means nothing, set "
    "limits relative to the reference",
    "pairs-and-signs": "the cost is below 0 where the answers of the data were flagged safe more often than not",
}
"""What 0 means, by what was fitted."""


def objective_name(direction: Direction, *, signed: bool) -> str:
    """Return the name in ``OBJECTIVES`` for labels of that kind."""
    return "pairs-and-signs" if direction == "cost" and signed else "pairs"


def meaning_of_zero(direction: Direction, objective: str) -> str:
    """Return what a score of 0 means."""
    return ZERO["reward" if direction == "reward" else objective]


MAX_WORDS = 1_000
"""Whole answers, nearly always: unlike the class of an answer, its order among others may be told at its end."""


@dataclass(frozen=True)
class TfidfFeatures:
    """Vocabularies and weights, as they were in the texts that they were made from."""

    words: tuple[str, ...]
    characters: tuple[str, ...]
    idf: FloatArray
    """Shape ``[feature]``, words first."""
    max_words: int = MAX_WORDS

    @classmethod
    def of(cls, responses: Sequence[str]) -> Self:
        """Return the features of the terms of ``responses``; no label is read.

        Raises:
            DataError: no term is common enough.
        """
        learned = learn(responses, MAX_WORDS)
        return cls(learned.words, learned.characters, learned.idf)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Any:  # noqa: ARG002
        """Return the sparse ``[answer, feature]`` matrix."""
        if not responses:
            return sparse.csr_matrix((0, len(self.idf)))
        return features(responses, self)

    def to_json(self) -> dict[str, Any]:
        """Return all but the arrays."""
        return {"words": self.words, "characters": self.characters, "max_words": self.max_words}

    def tensors(self) -> dict[str, FloatArray]:
        """Return the arrays."""
        return {"idf": np.ascontiguousarray(self.idf)}

    @classmethod
    def load(cls, head: Mapping[str, Any], tensors: Mapping[str, FloatArray]) -> Self:
        """Return the features that ``to_json`` and ``tensors`` told of."""
        return cls(tuple(head["words"]), tuple(head["characters"]), tensors["idf"], int(head["max_words"]))


MAX_ITERATIONS = 2_000
TOLERANCE = 1e-7
"""Largest slope at which the minimiser stops by itself."""
ACCEPTED = 1e-4
"""Largest slope that is accepted; features have length 1, so that losses are then within about 1e-6 of the least."""


@dataclass(frozen=True, slots=True)
class PairFeatures:
    """Features of both answers of pairs; matrices are dense or sparse, ``[pair, feature]``."""

    higher: Any
    lower: Any
    higher_sign: FloatArray
    lower_sign: FloatArray

    def __getitem__(self, rows: Any) -> PairFeatures:
        return PairFeatures(self.higher[rows], self.lower[rows], self.higher_sign[rows], self.lower_sign[rows])

    def __len__(self) -> int:
        return len(self.higher_sign)


@dataclass(frozen=True, slots=True)
class LinearHead:
    """score = bias + weights . features."""

    weights: FloatArray
    bias: float

    def __call__(self, features: Any) -> FloatArray:
        """Return shape ``[answer]`` scores of ``[answer, feature]``."""
        return np.asarray(features @ self.weights, dtype=np.float64).ravel() + self.bias


def mean_loss(head: LinearHead, data: PairFeatures, loss: ScoreLoss) -> float:
    """Return the mean loss over the pairs, without the decay."""
    return _loss_and_slopes(head(data.higher), head(data.lower), data, loss)[0]


def fit_linear(data: PairFeatures, loss: ScoreLoss, *, decay: float) -> LinearHead:
    """Return the head that minimises ``mean loss + decay / 2 * |weights|^2``; the bias does not decay.

    Raises:
        NumericalError: the minimiser did not converge.
    """
    width = data.higher.shape[1]

    def objective(point: FloatArray) -> tuple[float, FloatArray]:
        head = LinearHead(point[:width], float(point[width]))
        value, by_higher, by_lower = _loss_and_slopes(head(data.higher), head(data.lower), data, loss)
        gradient = data.higher.T @ by_higher + data.lower.T @ by_lower + decay * head.weights
        return value + decay / 2 * float(head.weights @ head.weights), np.append(gradient, (by_higher + by_lower).sum())

    found = minimize(
        objective,
        np.zeros(width + 1),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MAX_ITERATIONS, "maxfun": 2 * MAX_ITERATIONS, "ftol": 1e-12, "gtol": TOLERANCE},
    )
    # The line search may give up within rounding of the minimum: the slope tells, not the message.
    if not np.abs(found.jac).max() <= ACCEPTED:
        raise NumericalError(f"linear head: no minimum found with decay {decay:g} ({found.message}); raise the decay")
    return LinearHead(found.x[:width], float(found.x[width]))


def choose_decay(
    data: PairFeatures, loss: ScoreLoss, groups: Sequence[str], *, grid: Sequence[float], folds: int, seed: int
) -> tuple[float, dict[float, float]]:
    """Return the decay with the least loss on prompts left out in turn (the largest of equals), and every loss.

    Args:
        data: pairs to train on.
        loss: what is minimised and compared.
        groups: prompt of each pair; its pairs are never on both sides.
        grid: decays to try.
        folds: number of parts.
        seed: of the parts.
    """
    names = np.unique(np.asarray(groups))
    part = np.random.default_rng(seed).permutation(len(names)) % folds
    fold = part[np.searchsorted(names, np.asarray(groups))]
    losses = {}
    for decay in grid:
        total = 0.0
        for number in range(folds):
            inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            total += mean_loss(fit_linear(data[inside], loss, decay=decay), data[outside], loss) * len(outside)
        losses[decay] = total / len(data)
    return min(sorted(losses, reverse=True), key=lambda decay: losses[decay]), losses


def _loss_and_slopes(
    higher: FloatArray, lower: FloatArray, data: PairFeatures, loss: ScoreLoss
) -> tuple[float, FloatArray, FloatArray]:
    """Return the mean loss and its derivatives by either side's scores, each ``[pair]``."""
    sides = [torch.from_numpy(scores).requires_grad_() for scores in (higher, lower)]
    marks = [torch.from_numpy(sign) for sign in (data.higher_sign, data.lower_sign)]
    value = loss(*sides, *marks).mean()
    slopes = torch.autograd.grad(value, sides)
    return float(value.detach()), slopes[0].numpy(), slopes[1].numpy()


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
