"""The light path: frozen features of both answers of pairs, and the linear head that minimises the exact loss.

The losses are those of all paths, one function a kind of labels and one table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import minimize
from torch import Tensor

from dualign.errors import DataError, NumericalError
from dualign.maths.losses import cost_model_loss, reward_model_loss
from dualign.protocols import Direction
from dualign.records import FloatArray
from dualign.scorers.fitted import Features, FittedScorer, Tfidf
from dualign.scorers.fitting.inputs import Answers, FitConfig, LabelledPair, answers, signs
from dualign.scorers.states import RememberedStates, StateFeatures, StateReader, StateSettings, config_of, located

ScoreLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(scores of the higher answers, of the lower, signs of the higher, of the lower) -> losses; each ``[pair]``."""


OBJECTIVES: dict[str, Callable[..., ScoreLoss]] = {
    "pairs": lambda **weight: lambda higher, lower, *_: reward_model_loss(higher, lower, **weight),
    "pairs-and-signs": lambda **weight: partial(cost_model_loss, **weight),
}
"""By name, the loss of a regularisation: of the order alone, or of the order and of the sign of either cost."""

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


def fit_light(
    pairs: Sequence[LabelledPair],
    config: FitConfig,
    *,
    objective: str,
    reader: RememberedStates | None,
    tell: Callable[[str], None],
) -> tuple[FittedScorer, float, dict[float, float]]:
    """Return the linear head that minimises the exact loss of ``pairs``, its decay, and by decay the loss left out.

    Args:
        pairs: training pairs; no answer is longer than the model takes.
        config: ``light`` and what both paths share.
        objective: name in ``OBJECTIVES``.
        reader: of hidden states, where they are a feature; best one that remembers the answers of ``pairs``.
        tell: is told of the steps that take time.

    Raises:
        DataError: there are fewer prompts than folds.
        NumericalError: the fit did not converge.
    """
    light = config.light
    groups = [pair.prompt.id for pair in pairs]
    if len(set(groups)) < light.folds:
        raise DataError(
            f"data: {len(set(groups))} prompts to train on; at least light.folds = {light.folds} are needed"
        )
    distinct = answers(pairs)
    blocks, matrices = {}, []
    for name in config.features:
        tell(f"features: {name} of {len(distinct.texts):,} answers")
        blocks[name], matrix = _features(name, distinct, reader)
        matrices.append(matrix)
    data = pair_features(pairs, distinct, matrices)
    loss = OBJECTIVES[objective](regularisation=config.regularisation)
    tell(f"linear head: {len(light.decays)} decays x {light.folds} folds")
    decay, losses = choose_decay(data, loss, groups, grid=light.decays, folds=light.folds, seed=config.seed)
    linear = fit_linear(data, loss, decay=decay)
    # Weights stand one block after the other.
    parts = np.split(linear.weights, np.cumsum([matrix.shape[1] for matrix in matrices])[:-1])
    weights = dict(zip(blocks, parts, strict=True))
    return FittedScorer(blocks, weights, linear.bias, config.kind, objective, config.kind), decay, losses


def _features(name: str, distinct: Answers, reader: RememberedStates | None) -> tuple[Features, Any]:
    """Return a block of features made from the answers, no label read, and the answers' own."""
    if name == "tfidf":
        words = Tfidf.learn(distinct.texts, MAX_WORDS)[0]
        return words, words.of(distinct.texts)
    if reader is None:
        raise TypeError("features 'states' need a reader of hidden states")
    states = reader(*distinct.columns())
    block = StateFeatures.of(reader, states)
    return block, block.standardised(states)


def open_reader(config: FitConfig, folder: Path) -> StateReader | None:
    """Return the reader of the config's hidden states, none where they are no feature."""
    if "states" not in config.features:
        return None
    model = located(str(config.model), folder)
    layers = int(config_of(model).num_hidden_layers)
    # Above the middle one: of SmolLM2-135M's 30, the 16th tells the order of safety pairs best.
    layer = config.light.layer or min(layers, layers // 2 + 1)
    shared = config.model_dump(include={"template", "max_length", "dtype"})
    return StateReader(StateSettings(model=model, layer=layer, pooling=config.light.pooling, **shared))


def pair_features(pairs: Sequence[LabelledPair], distinct: Answers, matrices: Sequence[Any]) -> PairFeatures:
    """Return both sides' features from matrices whose rows are the distinct answers of ``pairs``."""
    dense = all(isinstance(matrix, np.ndarray) for matrix in matrices)
    joined = np.hstack(matrices) if dense else sparse.hstack(matrices, format="csr")
    higher, lower = signs([pair.higher for pair in pairs]), signs([pair.lower for pair in pairs])
    return PairFeatures(joined[distinct.higher], joined[distinct.lower], higher, lower)
