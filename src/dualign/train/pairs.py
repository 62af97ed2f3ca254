"""The objective of pairs: labels made from scores and multipliers, two-sided losses, and the fit of one policy.

A new multiplier costs no work on the data.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualign.errors import DataError, MissingError, UsageError
from dualign.hashing import canonical_digest, file_digest
from dualign.models import adapters
from dualign.models.language_model import LanguageModel
from dualign.models.log_probs import LAYOUTS, PairScorer, Reading, Sequences, TokenBatch, rows
from dualign.models.pair_store import StoredGroup, group_digest
from dualign.protocols import FitReport, Need, Objective, PairBatch, Policy, Side
from dualign.records import FloatArray
from dualign.runs.store import read_json, write_json
from dualign.train.loop import Checkpoints, Optimiser, Task, Terms, late, late_loss, run
from dualign.train.settings import TrainingSettings, keyed_generators, plan_steps
from dualign.train.weights import save_policy, trained_weights

RECORD = "fit.json"
REFERENCE = "log-probability under the reference"


@dataclass(frozen=True, slots=True)
class FitInputs:
    """All that decides a fit, besides the settings and the model."""

    groups: Sequence[StoredGroup]
    """Groups that have a pair."""
    reference_log_probs: Sequence[FloatArray]
    """One ``[response]`` a group."""
    objective: Objective
    start: Policy
    """Its weights are copied; without weights a fresh adapter, or the base model for full weights."""
    seed: int
    layout: str
    """``rows`` or ``shared``."""


def fit(
    language_model: LanguageModel, inputs: FitInputs, *, settings: TrainingSettings, folder: Path, notes: list[str]
) -> FitReport:
    """Return the report of a fit whose weights are in ``folder`` afterwards; the base model is as it was.

    A folder with the result of the very same inputs is left as it is; a checkpoint of them is gone on from.
    Sentences for the user are appended to ``notes``.

    Raises:
        NumericalError: a loss or a gradient is not finite; nothing of that step is applied.
        DataError: no group has two different responses.
        UsageError: settings that do not fit the model or the start.
    """
    if not inputs.groups:
        raise DataError("groups: none has two different responses; there is nothing to learn from")
    key = fit_key(language_model, inputs, settings)
    done = _finished(folder, key)
    if done is not None:
        return done
    started, checkpoints = time.monotonic(), Checkpoints(folder, key)
    with trained_weights(language_model, inputs.start, settings) as parameters:
        optimiser = Optimiser(parameters, settings)
        history = run(pair_task(language_model, inputs, settings), optimiser, checkpoints, tell=notes.append)
        file = save_policy(language_model, parameters, optimiser.masters, settings, folder)
    squares = sum(row["squares"] for row in late(history))
    slope = sum(row["products"] for row in late(history)) / squares if squares > 0 else math.nan
    report = FitReport(len(history), late_loss(history), slope, time.monotonic() - started, tuple(history))
    write_json(folder / RECORD, {"key": key, "sha256": file_digest(file), "report": asdict(report)})
    checkpoints.drop()
    return report


def fit_key(language_model: LanguageModel, inputs: FitInputs, settings: TrainingSettings) -> str:
    """Return the hash of all that decides the result of a fit."""
    objective = inputs.objective
    goal = (
        objective.name,
        np.atleast_1d(objective.multipliers).tolist(),
        objective.beta,
        objective.temperature,
        objective.columns,
        sorted(objective.needs),
        getattr(objective.labels, "__name__", ""),
    )
    return canonical_digest(
        {
            "settings": settings.deciding,
            "model": [language_model.revision, str(language_model.model.dtype), language_model.temperature],
            "objective": [repr(value) for value in goal],
            "groups": [group_digest(group) for group in inputs.groups],
            "reference": [[repr(float(x)) for x in values] for values in inputs.reference_log_probs],
            "start": adapters.fingerprint(inputs.start),
            "seed": inputs.seed,
            "layout": inputs.layout,
        }
    )


def _finished(folder: Path, key: str) -> FitReport | None:
    """Return the report of a fit of the same inputs whose weights are whole."""
    if not (folder / RECORD).is_file():
        return None
    try:
        record = read_json(folder / RECORD)
        path = adapters.weights_file(Policy(folder.name, folder))
        if record["key"] != key or path is None or file_digest(path) != record["sha256"]:
            return None
        report: dict[str, Any] = {
            name: math.nan if value is None else value for name, value in record["report"].items()
        }
        return FitReport(**{**report, "history": tuple(report["history"])})
    except (DataError, MissingError, KeyError, TypeError, AttributeError):
        return None


def pair_task(language_model: LanguageModel, inputs: FitInputs, settings: TrainingSettings) -> Task:
    """Return the task of fitting the policy to its labelled pairs."""
    objective = inputs.objective
    labelled = label(inputs.groups, inputs.reference_log_probs, objective, inputs.seed)

    def collated(chosen: Sequence[int], step: Sequence[int]) -> PairMicroBatch:
        total = sum(labelled[i].group.weight for i in step)
        made = collate(
            [labelled[i] for i in chosen],
            total,
            layout=inputs.layout,
            pad=language_model.pad,
            by_embeddings=Need.INPUT_EMBEDDINGS in objective.needs,
        )
        return replace(made, tokens=made.tokens.to(language_model.device))

    def losses(reading: Reading, micro: PairMicroBatch) -> Terms:
        batch = pair_batch(micro, reading.responses, reading.embeddings)
        first = micro.probability.to(batch.weight.device, batch.weight.dtype)
        wins = objective.loss(batch.first, batch.second)
        found = first * wins + (1 - first) * objective.loss(batch.second, batch.first)
        # A pass that only looks (for weights of the whole step) takes the losses without the penalty.
        if objective.penalty is not None and torch.is_grad_enabled():
            found = found + objective.penalty(batch, found)
        implied = objective.beta * (batch.first.log_ratio - batch.second.log_ratio).detach()
        products = (batch.weight * implied * batch.label_logit).sum()
        squares = (batch.weight * batch.label_logit**2).sum()
        return Terms(found, batch.weight, figures={"products": products, "squares": squares})

    plan = plan_steps([group.length for group in inputs.groups], settings, keyed_generators(inputs.seed))
    module = PairScorer(language_model)
    return Task("training", module, plan, collated, losses, settings, inputs.seed, weigh=objective.weigh)


@dataclass(frozen=True, slots=True)
class LabelledGroup:
    """A stored group with what this fit adds to its pairs."""

    group: StoredGroup
    sides: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
    """Columns of the first and second responses, each ``[pair]``; REFERENCE: their log-probabilities under it."""
    label_logit: Tensor
    """Shape ``[pair]``."""
    probability: Tensor
    """Shape ``[pair]``: that the first response wins."""


@dataclass(frozen=True, slots=True)
class PairMicroBatch:
    """The pairs of one forward and backward pass."""

    tokens: TokenBatch
    slots: tuple[Tensor, Tensor]
    """Flat slots of the first and second responses in the scorer's output, each ``[pair]``."""
    sides: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
    """As those of the groups."""
    label_logit: Tensor
    probability: Tensor
    weight: Tensor


def label(
    groups: Sequence[StoredGroup], reference: Sequence[FloatArray], objective: Objective, seed: int
) -> list[LabelledGroup]:
    """Return the groups with the labels of ``objective``; drawn labels are drawn once, from ``seed``.

    Raises:
        UsageError: the scores hold another number of constraints than there are multipliers, or lack a column.
    """
    generator = torch.Generator().manual_seed(seed)
    multipliers = np.atleast_1d(objective.multipliers)
    labelled = []
    for group, log_probs in zip(groups, reference, strict=True):
        if group.costs.shape[1] != len(multipliers):
            raise UsageError(f"multipliers: {len(multipliers)} were given for {group.costs.shape[1]} costs a response")
        if missing := [name for name in objective.columns if name not in group.columns]:
            raise UsageError(f"objective {objective.name}: the groups have no column '{missing[0]}'")
        columns = {**{name: group.columns[name] for name in objective.columns}, REFERENCE: log_probs}
        first, second = (
            {name: torch.from_numpy(values[group.pairs[:, side]]) for name, values in columns.items()}
            for side in (0, 1)
        )
        score = group.reward - group.costs @ multipliers
        difference = score[group.pairs[:, 0]] - score[group.pairs[:, 1]]
        logit = torch.from_numpy(difference / objective.temperature)
        labelled.append(LabelledGroup(group, (first, second), logit, objective.labels(logit, generator)))
    return labelled


def collate(
    labelled: Sequence[LabelledGroup], total_weight: float, *, layout: str, pad: int, by_embeddings: bool
) -> PairMicroBatch:
    """Return the micro-batch of these groups; the weights of a step sum to 1 when ``total_weight`` is the step's.

    An objective that differentiates by the embeddings gets every pair in rows of its own.
    """
    sequences: list[Sequences] = []
    slots: list[list[int]] = []
    widest = 2 if by_embeddings else max(len(item.group.responses) for item in labelled)
    for group in (item.group for item in labelled):
        pairs = group.index[group.pairs]
        if by_embeddings:
            slots += [[2 * number, 2 * number + 1] for number in range(len(sequences), len(sequences) + len(pairs))]
            sequences += [(group.prompt, (group.responses[i], group.responses[j])) for i, j in pairs]
        else:
            slots += (len(sequences) * widest + pairs).tolist()
            sequences.append((group.prompt, group.responses))
    tokens = replace(rows(sequences, pad), by_embeddings=True) if by_embeddings else LAYOUTS[layout](sequences, pad)
    first, second = torch.tensor(slots).unbind(1)
    weights = [(item.group.weight / total_weight / len(item.group.pairs), len(item.group.pairs)) for item in labelled]
    return PairMicroBatch(
        tokens,
        (first, second),
        (_joined([item.sides[0] for item in labelled]), _joined([item.sides[1] for item in labelled])),
        torch.cat([item.label_logit for item in labelled]),
        torch.cat([item.probability for item in labelled]),
        torch.cat([torch.full((pairs,), weight, dtype=torch.float64) for weight, pairs in weights]),
    )


def _joined(sides: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([side[name] for side in sides]) for name in sides[0]}


def pair_batch(micro: PairMicroBatch, log_probs: Tensor, embeddings: Tensor | None) -> PairBatch:
    """Return what an objective sees of a micro-batch, given the scorer's ``[group, K]`` log-probabilities."""
    flat = log_probs.reshape(-1)

    def to(values: Tensor) -> Tensor:
        return values.to(flat.device, flat.dtype)

    def side(slots: Tensor, columns: Mapping[str, Tensor]) -> Side:
        moved = {name: to(values) for name, values in columns.items()}
        return Side(flat[slots.to(flat.device)] - moved.pop(REFERENCE), moved)

    def embedding_gradient(losses: Tensor) -> Tensor:
        if embeddings is None:
            raise UsageError("objective: it reads embedding gradients, but gives no penalty that says so")
        (gradient,) = torch.autograd.grad(losses.sum(), embeddings, create_graph=True)
        return gradient.pow(2).reshape(len(losses), -1).sum(1)

    first, second = map(side, micro.slots, micro.sides)
    return PairBatch(first, second, to(micro.label_logit), to(micro.weight), embedding_gradient)
