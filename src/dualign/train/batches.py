"""Which groups make which step, and the pairs of a micro-step with their labels.

Labels are made here, from scores and multipliers: a new multiplier costs no work on the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dualign.errors import UsageError
from dualign.models.log_probs import Layout, Sequences, TokenBatch, rows
from dualign.models.pair_store import IntArray, StoredGroup
from dualign.protocols import Need, Objective, PairBatch, Side
from dualign.records import FloatArray

WINDOW = 8
"""Steps whose groups are sorted by length together: little padding, and still a random order."""


@dataclass(frozen=True, slots=True)
class LabelledGroup:
    """A stored group with what this fit adds to it."""

    group: StoredGroup
    reference: FloatArray
    """Shape ``[response]``: log-probabilities under the reference."""
    label_logit: Tensor
    """Shape ``[pair]``."""
    probability: Tensor
    """Shape ``[pair]``: that the first response wins."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The pairs of one forward and backward pass."""

    tokens: TokenBatch
    first: Tensor
    """Shape ``[pair]``: flat slot of the first response in the scorer's output."""
    second: Tensor
    reference: tuple[Tensor, Tensor]
    """Reference log-probabilities of the first and second responses, each ``[pair]``."""
    columns: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
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
        score = group.reward - group.costs @ multipliers
        difference = score[group.pairs[:, 0]] - score[group.pairs[:, 1]]
        logit = torch.from_numpy(difference / objective.temperature)
        labelled.append(LabelledGroup(group, log_probs, logit, objective.labels(logit, generator)))
    return labelled


def plan_steps(lengths: Sequence[int], *, groups_a_step: int, steps: int, seed: int) -> list[IntArray]:
    """Return the numbers of the groups of each of ``steps`` steps.

    Each epoch shuffles the groups, sorts them by length within windows of a few steps, cuts them into steps and
    shuffles those; the last step of an epoch may be short.
    """
    planned: list[IntArray] = []
    epoch = 0
    while len(planned) < steps:
        generator = np.random.default_rng([seed, epoch])
        order = generator.permutation(len(lengths))
        window = groups_a_step * WINDOW
        cut: list[IntArray] = []
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part = part[np.argsort(np.asarray(lengths)[part], kind="stable")]
            cut += [part[i : i + groups_a_step] for i in range(0, len(part), groups_a_step)]
        planned += [cut[i] for i in generator.permutation(len(cut))]
        epoch += 1
    return planned[:steps]


def count_steps(groups: int, groups_a_step: int, *, epochs: float, max_steps: int) -> int:
    """Return the optimiser steps of a fit: ``max_steps`` where it is positive, else those of ``epochs``."""
    if max_steps > 0:
        return max_steps
    return max(1, math.ceil(epochs * math.ceil(groups / groups_a_step)))


def collate(
    labelled: Sequence[LabelledGroup], total_weight: float, *, layout: Layout, pad: int, needs: frozenset[Need]
) -> MicroBatch:
    """Return the micro-batch of these groups; the weights of a step sum to 1 when ``total_weight`` is the step's.

    An objective that differentiates by the embeddings gets every pair in rows of its own.
    """
    alone = Need.INPUT_EMBEDDINGS in needs
    sequences: list[Sequences] = []
    first: list[int] = []
    second: list[int] = []
    if alone:
        for item in labelled:
            for i, j in item.group.index[item.group.pairs]:
                sequences.append((item.group.prompt, (item.group.responses[i], item.group.responses[j])))
        first, second = list(range(0, 2 * len(sequences), 2)), list(range(1, 2 * len(sequences), 2))
    else:
        widest = max(len(item.group.responses) for item in labelled)
        for number, item in enumerate(labelled):
            sequences.append((item.group.prompt, item.group.responses))
            slots = number * widest + item.group.index[item.group.pairs]
            first += slots[:, 0].tolist()
            second += slots[:, 1].tolist()
    tokens = (rows if alone else layout)(sequences, pad)
    return MicroBatch(
        tokens,
        torch.tensor(first),
        torch.tensor(second),
        (_side(labelled, 0, None), _side(labelled, 1, None)),
        (_columns(labelled, 0), _columns(labelled, 1)),
        torch.cat([item.label_logit for item in labelled]),
        torch.cat([item.probability for item in labelled]),
        torch.cat([_weights(item.group, total_weight) for item in labelled]),
    )


def _weights(group: StoredGroup, total: float) -> Tensor:
    pairs = len(group.pairs)
    return torch.full((pairs,), group.weight / total / pairs, dtype=torch.float64)


def _side(labelled: Sequence[LabelledGroup], side: int, column: str | None) -> Tensor:
    values = [
        (item.reference if column is None else item.group.columns[column])[item.group.pairs[:, side]]
        for item in labelled
    ]
    return torch.from_numpy(np.concatenate(values))


def _columns(labelled: Sequence[LabelledGroup], side: int) -> dict[str, Tensor]:
    names = set(labelled[0].group.columns).intersection(*(item.group.columns for item in labelled))
    return {name: _side(labelled, side, name) for name in sorted(names)}


def pair_batch(micro: MicroBatch, log_probs: Tensor, embeddings: Tensor | None) -> PairBatch:
    """Return what an objective sees of a micro-batch, given the scorer's ``[group, K]`` log-probabilities."""
    flat = log_probs.reshape(-1)

    def to(values: Tensor) -> Tensor:
        return values.to(flat.device, flat.dtype)

    sides = [
        Side(flat[slots.to(flat.device)] - to(reference), {name: to(values) for name, values in columns.items()})
        for slots, reference, columns in zip((micro.first, micro.second), micro.reference, micro.columns, strict=True)
    ]

    def embedding_gradient(losses: Tensor) -> Tensor:
        if embeddings is None:
            raise UsageError("objective: it reads embedding gradients, but gives no penalty that says so")
        (gradient,) = torch.autograd.grad(losses.sum(), embeddings, create_graph=True)
        return gradient.pow(2).reshape(len(losses), -1).sum(1)

    return PairBatch(sides[0], sides[1], to(micro.label_logit), to(micro.weight), embedding_gradient)
