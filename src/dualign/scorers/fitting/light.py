"""The light path: frozen features of both answers, and the linear head that minimises the exact loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dualign.errors import DataError
from dualign.records import Prompt
from dualign.scorers.fitting.config import FitConfig
from dualign.scorers.fitting.hidden import Reader, StateFeatures, StateReader, StateSettings, layers_of, located
from dualign.scorers.fitting.linear import (
    OBJECTIVES,
    Features,
    FittedHead,
    PairFeatures,
    TfidfFeatures,
    choose_decay,
    fit_linear,
)
from dualign.scorers.fitting.pairs import Answers, LabelledPair, answers, signs


@dataclass(frozen=True, slots=True)
class LightFit:
    """The head and how it was chosen."""

    head: FittedHead
    decay: float
    losses: Mapping[float, float]
    """Mean loss a pair on prompts left out, by decay."""


def fit_light(
    pairs: Sequence[LabelledPair],
    config: FitConfig,
    *,
    objective: str,
    reader: Reader | None,
    tell: Callable[[str], None],
) -> LightFit:
    """Return the head fitted to ``pairs``.

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
        blocks[name], matrix = _MAKERS[name](*distinct.columns(), reader)
        matrices.append(matrix)
    data = pair_features(pairs, distinct, matrices)
    loss = OBJECTIVES[objective](regularisation=config.regularisation)
    tell(f"linear head: {len(light.decays)} decays x {light.folds} folds")
    decay, losses = choose_decay(data, loss, groups, grid=light.decays, folds=light.folds, seed=config.seed)
    widths = [matrix.shape[1] for matrix in matrices]
    linear = fit_linear(data, loss, decay=decay)
    return LightFit(FittedHead.of(blocks, widths, linear, direction=config.kind, objective=objective), decay, losses)


def open_reader(config: FitConfig, folder: Path) -> StateReader | None:
    """Return the reader of the config's hidden states, none where they are no feature."""
    if "states" not in config.features:
        return None
    model = located(str(config.model), folder)
    settings = StateSettings(
        model=model,
        layer=config.light.layer or default_layer(layers_of(model)),
        pooling=config.light.pooling,
        template=config.template,
        max_length=config.max_length,
        dtype=config.dtype,
    )
    return StateReader(settings)


def default_layer(layers: int) -> int:
    """Return the layer above the middle one: of SmolLM2-135M's 30, the 16th tells the order of safety pairs best."""
    return min(layers, layers // 2 + 1)


def pair_features(pairs: Sequence[LabelledPair], distinct: Answers, matrices: Sequence[Any]) -> PairFeatures:
    """Return both sides' features from matrices whose rows are the distinct answers of ``pairs``."""
    from scipy import sparse

    dense = all(isinstance(matrix, np.ndarray) for matrix in matrices)
    joined = np.hstack(matrices) if dense else sparse.hstack(matrices, format="csr")
    higher, lower = signs([pair.higher for pair in pairs]), signs([pair.lower for pair in pairs])
    return PairFeatures(joined[distinct.higher], joined[distinct.lower], higher, lower)


def _tfidf(prompts: Sequence[Prompt], texts: Sequence[str], _: Reader | None) -> tuple[Features, Any]:
    block = TfidfFeatures.of(texts)
    return block, block(prompts, texts)


def _states(prompts: Sequence[Prompt], texts: Sequence[str], reader: Reader | None) -> tuple[Features, Any]:
    if reader is None:
        raise TypeError("features 'states' need a reader of hidden states")
    states = reader(prompts, texts)
    block = StateFeatures.of(reader, states)
    return block, block.standardised(states)


_MAKERS: dict[str, Callable[..., tuple[Features, Any]]] = {"tfidf": _tfidf, "states": _states}
