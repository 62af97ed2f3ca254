"""AdamW on float32 copies of the trained weights, and checkpoints of its state as plain tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualign.errors import DataError, MissingError, NumericalError
from dualign.hashing import file_digest
from dualign.models.adapters import read_weights
from dualign.runs.store import read_json, remove_folder, write_bytes, write_json
from dualign.train.settings import TrainingSettings


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return what weights of ``dtype`` are moved and kept in: float32, float64 where they are."""
    return torch.promote_types(dtype, torch.float32)


class Optimiser:
    """Holds the masters: a weight in bfloat16 would lose most steps of a small learning rate to rounding."""

    def __init__(self, parameters: Mapping[str, Tensor], *, weight_decay: float, betas: tuple[float, float]) -> None:
        self.parameters = dict(parameters)
        self.masters = {name: p.detach().to(wide(p.dtype)).clone() for name, p in self.parameters.items()}
        # Norms and biases are not decayed: decay would pull them to 0, which is not their neutral value.
        matrices = [m for m in self.masters.values() if m.ndim > 1]
        others = [m for m in self.masters.values() if m.ndim <= 1]
        kinds = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW([kind for kind in kinds if kind["params"]], betas=betas, fused=True)

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor], settings: TrainingSettings) -> Optimiser:
        """Return the optimiser of ``settings``."""
        betas = (settings.adam_beta1, settings.adam_beta2)
        return cls(parameters, weight_decay=settings.weight_decay, betas=betas)

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


FOLDER = "checkpoint"
INDEX = "checkpoint.json"


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
