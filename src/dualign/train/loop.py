"""The one training loop, for pairs, next tokens, scores and on-policy updates alike.

Planned steps -> micro-batches -> ``module(batch)`` -> one loss an example -> weights -> accumulation -> finite check ->
one backward pass -> step -> checkpoint -> a row of history.

The step is AdamW on float32 copies of the trained weights; a checkpoint is its state as plain tensors.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dualign.errors import DataError, MissingError, NumericalError
from dualign.hashing import file_digest
from dualign.models.adapters import read_weights
from dualign.runs.store import read_json, remove_folder, write_bytes, write_json
from dualign.train.settings import TrainingSettings, rate_factor
from dualign.train.weights import keyed_dropout

PATIENCE = 20
"""So many times as long as a checkpoint took is waited before the next: they take a twentieth of the time at most."""

FOLDER = "checkpoint"
INDEX = "checkpoint.json"

Row = dict[str, float]


class MicroBatch(Protocol):
    """The examples of one forward and backward pass."""

    @property
    def tokens(self) -> Any:
        """Return what the trained module reads, on its device."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a micro-batch gives to the loss of its step: the sum of ``losses * weights``, over ``total``."""

    losses: Tensor
    """Shape ``[example]``."""
    weights: Tensor | float = 1.0
    """Shape ``[example]``; over all micro-batches of a step they sum to ``total``."""
    total: float = 1.0
    figures: Mapping[str, Tensor | float] = field(default_factory=dict)
    """Summed over the step for the row of history."""


Losses = Callable[[Any, Any], Terms]
"""(the module's output for a micro-batch, the micro-batch) -> its terms."""
Weigh = Callable[[Tensor, Tensor], Tensor]
"""(losses, weights) of all examples of a step -> weights."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A step, as messages name it and as its dropout is keyed."""

    name: str
    """What is trained; it opens messages."""
    seed: int
    step: int
    """From 0."""
    steps: int
    dropout: float


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained, on what, and to what end."""

    name: str
    module: nn.Module
    """All that is trained, the output head included: whatever wraps it sees every pass."""
    plan: Sequence[Sequence[int]]
    """The numbers of the examples of each step."""
    collate: Callable[[Sequence[int], Sequence[int]], MicroBatch]
    """(numbers of a micro-batch's examples, of its whole step's) -> the micro-batch."""
    losses: Losses
    settings: TrainingSettings
    seed: int
    weigh: Weigh | None = None
    """Weights that depend on every loss of the step: they take a first pass that only looks."""


def run(
    task: Task,
    optimiser: Optimiser,
    checkpoints: Checkpoints,
    *,
    tell: Callable[[str], None],
    after_step: Callable[[Sequence[Row]], None] = lambda history: None,  # noqa: ARG005
) -> list[Row]:
    """Return one row a step, after all steps of ``task``; a checkpoint of the same inputs is gone on from.

    ``tell`` hears of a checkpoint that cannot be used; ``after_step`` gets the rows so far.

    Raises:
        NumericalError: a loss or a gradient is not finite; nothing of that step is applied.
    """
    history: list[Row] = []
    checkpoint = checkpoints.load(tell)
    if checkpoint is not None:
        optimiser.restore(checkpoint.tensors)
        history = [dict(row) for row in checkpoint.history]
    saved, wait, every = time.monotonic(), task.settings.checkpoint_seconds, task.settings.checkpoint_steps
    for number in range(len(history), len(task.plan)):
        history.append(step(task, optimiser, number))
        began = time.monotonic()
        if began - saved >= wait or (every and (number + 1) % every == 0):
            checkpoints.save(Checkpoint(optimiser.state(), history))
            saved = time.monotonic()
            wait = max(task.settings.checkpoint_seconds, PATIENCE * (saved - began))
        after_step(history)
    return history


def step(task: Task, optimiser: Optimiser, number: int) -> Row:
    """Return what the optimiser step of that number showed, after it was applied."""
    chosen, size, settings = task.plan[number], task.settings.per_device_train_batch_size, task.settings
    parts = [task.collate(chosen[i : i + size], chosen) for i in range(0, len(chosen), size)]
    at = Moment(task.name, task.seed, number, len(task.plan), settings.lora_dropout)
    row = accumulate(task.module, task.losses, parts, at, weigh=task.weigh)
    rate = settings.learning_rate * rate_factor(number, settings, steps=len(task.plan))
    norm = optimiser.step(learning_rate=rate, max_grad_norm=settings.max_grad_norm)
    return {"step": number + 1, "loss": row.pop("loss"), "gradient_norm": norm, "learning_rate": rate, **row}


def accumulate(
    module: nn.Module, losses: Losses, parts: Sequence[MicroBatch], at: Moment, *, weigh: Weigh | None = None
) -> Row:
    """Return the loss of a step over its micro-batches and its figures; the gradients lie on the parameters then.

    Dropout is keyed by (seed, step, micro-batch): a resumed training and a second pass over a step draw the same.

    Raises:
        NumericalError: a loss is not finite.
    """
    device = next(module.parameters()).device

    def terms_of(number: int) -> Terms:
        with keyed_dropout(at.dropout, device, (at.seed, at.step, number)):
            return losses(module(parts[number].tokens), parts[number])

    weights = None if weigh is None else _whole_step_weights(weigh, terms_of, len(parts))
    sums: Row = defaultdict(float)
    for number in range(len(parts)):
        terms = terms_of(number)
        chosen = terms.weights if weights is None else weights[number]
        loss = (terms.losses * chosen).sum() / terms.total
        value = loss.item()
        if not math.isfinite(value):
            raise NumericalError(
                f"{at.name}: the loss is {value:.4g} at step {at.step + 1} of {at.steps}; the step was not applied; "
                "lower learning_rate or train in float32"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        for name, figure in {"loss": value, **terms.figures}.items():
            sums[name] += float(figure)
    return dict(sums)


def _whole_step_weights(weigh: Weigh, terms_of: Callable[[int], Terms], parts: int) -> Sequence[Tensor]:
    with torch.no_grad():
        looked = [terms_of(number) for number in range(parts)]
    plain = [torch.as_tensor(terms.weights).expand_as(terms.losses) for terms in looked]
    weights = weigh(torch.cat([terms.losses for terms in looked]), torch.cat(plain))
    return torch.split(weights, [len(terms.losses) for terms in looked])


def late(history: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
    """Return the rows of the last quarter of the steps."""
    return history[-max(1, len(history) // 4) :]


def late_loss(history: Sequence[Mapping[str, float]]) -> float:
    """Return the mean loss of the last quarter of the steps."""
    return sum(row["loss"] for row in late(history)) / len(late(history))


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return what weights of ``dtype`` are moved and kept in: float32, float64 where they are."""
    return torch.promote_types(dtype, torch.float32)


class Optimiser:
    """Holds the masters: a weight in bfloat16 would lose most steps of a small learning rate to rounding."""

    def __init__(self, parameters: Mapping[str, Tensor], settings: TrainingSettings) -> None:
        self.parameters = dict(parameters)
        self.masters = {name: p.detach().to(wide(p.dtype)).clone() for name, p in self.parameters.items()}
        # Norms and biases are not decayed: decay would pull them to 0, which is not their neutral value.
        matrices = [m for m in self.masters.values() if m.ndim > 1]
        others = [m for m in self.masters.values() if m.ndim <= 1]
        kinds = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        betas = (settings.adam_beta1, settings.adam_beta2)
        self.adamw = torch.optim.AdamW([kind for kind in kinds if kind["params"]], betas=betas, fused=True)

    def step(self, *, learning_rate: float, max_grad_norm: float) -> float:
        """Return the gradient norm before clipping; the parameters are moved and their gradients dropped.

        Raises:
            NumericalError: the norm is not finite; then nothing was moved.
        """
        for name, parameter in self.parameters.items():
            gradient = parameter.grad
            self.masters[name].grad = None if gradient is None else gradient.to(self.masters[name].dtype)
            parameter.grad = None
        gradients = [m.grad for m in self.masters.values() if m.grad is not None]
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))
        if not math.isfinite(norm):
            raise NumericalError(f"training: the gradient norm is {norm}; the step was not applied")
        if norm > max_grad_norm:
            for gradient in gradients:
                gradient.mul_(max_grad_norm / norm)
        for kind in self.adamw.param_groups:
            kind["lr"] = learning_rate
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        self._publish()
        return norm

    def _publish(self) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.masters[name])

    def state(self) -> dict[str, Tensor]:
        """Return masters and moments by name."""
        tensors = {}
        for name, master in self.masters.items():
            tensors[f"weight.{name}"] = master
            for kind, value in self.adamw.state.get(master, {}).items():
                tensors[f"{kind}.{name}"] = value
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take masters and moments from ``tensors``, as ``state`` gave them."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(tensors[f"weight.{name}"])
                kinds = [kind for kind in ("step", "exp_avg", "exp_avg_sq") if f"{kind}.{name}" in tensors]
                if kinds:
                    held = {kind: tensors[f"{kind}.{name}"].to(master.device, copy=True) for kind in kinds}
                    self.adamw.state[master] = held
        self._publish()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a training stood. Randomness is keyed by (seed, step), so the rows of history are its whole state."""

    tensors: Mapping[str, Tensor]
    """Weights and optimiser moments."""
    history: Sequence[Mapping[str, float]]
    """A row for every step that was done."""


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Where one training keeps its checkpoint: below ``folder``; none: nowhere."""

    folder: Path | None
    key: str
    """The hash of all that decides the training's result."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint; the former one is valid until this one is whole.

        Raises:
            StorageError: the disk refused.
        """
        if self.folder is None:
            return
        from safetensors.torch import save

        folder, step = self.folder / FOLDER, len(checkpoint.history)
        path = write_bytes(folder / f"step-{step:06d}.safetensors", save(dict(checkpoint.tensors)))
        index = {"key": self.key, "step": step, "file": path.name, "sha256": file_digest(path)}
        write_json(folder / INDEX, {**index, "history": list(checkpoint.history)})
        for old in folder.glob("step-*.safetensors"):
            if old != path:
                old.unlink()

    def load(self, tell: Callable[[str], None]) -> Checkpoint | None:
        """Return the checkpoint that a training of these inputs left; ``tell`` hears of one that cannot be used."""
        if self.folder is None or not (self.folder / FOLDER / INDEX).is_file():
            return None
        path = self.folder / FOLDER / INDEX
        try:
            index: dict[str, Any] = read_json(path)
            file = path.parent / Path(index["file"]).name
            if index["key"] != self.key:
                why = f"{path.parent}: a checkpoint of other inputs is ignored"
            elif file.is_file() and file_digest(file) == index["sha256"]:
                return Checkpoint(read_weights(file), index["history"])
            else:
                why = f"{file}: damaged, so the checkpoint is ignored"
        except (DataError, MissingError, KeyError, TypeError, ValueError) as error:
            why = f"{path}: damaged ({type(error).__name__}), so the checkpoint is ignored"
        tell(f"{why}; the fit starts afresh")
        return None

    def drop(self) -> None:
        """Remove the checkpoint of a training that is done."""
        if self.folder is not None:
            remove_folder(self.folder / FOLDER)
