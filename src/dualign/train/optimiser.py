"""AdamW on float32 copies of the trained weights, its schedule, and its state as plain tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dualign.errors import DataError, MissingError, NumericalError
from dualign.hashing import file_digest
from dualign.models.adapters import read_weights
from dualign.runs.store import read_json, write_bytes, write_json

if TYPE_CHECKING:
    from torch import Tensor


Schedule = Literal["linear", "cosine", "constant"]


def rate_factor(step: int, *, steps: int, warmup_steps: int, schedule: Schedule, floor: float) -> float:
    """Return the share of the peak learning rate at ``step`` (from 0) of ``steps``.

    It rises over the warm-up as (step + 1) / (warmup_steps + 1), then falls to ``floor`` at the last step.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    fall = 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return floor + (1 - floor) * fall


class Optimiser:
    """Holds the masters: a weight in bfloat16 would lose most steps of a small learning rate to rounding."""

    def __init__(self, parameters: Mapping[str, Tensor], *, weight_decay: float, betas: tuple[float, float]) -> None:
        self.parameters = dict(parameters)
        self.masters = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32)).clone()
            for name, p in self.parameters.items()
        }
        # Norms and biases are not decayed: decay would pull them to 0, which is not their neutral value.
        matrices = [m for m in self.masters.values() if m.ndim > 1]
        others = [m for m in self.masters.values() if m.ndim <= 1]
        kinds = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
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
                    self.adamw.state[master] = {kind: tensors[f"{kind}.{name}"].clone() for kind in kinds}
        self._publish()


FOLDER = "checkpoint"
INDEX = "checkpoint.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a fit stood. Randomness is keyed by (seed, step), so the step is its whole state."""

    step: int
    """Optimiser steps done."""
    tensors: Mapping[str, Tensor]
    """Weights and optimiser moments."""
    history: Sequence[Mapping[str, float]]


def save_checkpoint(folder: Path, key: str, checkpoint: Checkpoint) -> None:
    """Write the checkpoint of a fit into its folder; the former one is valid until this one is whole.

    ``key`` is the hash of all inputs of the fit.

    Raises:
        StorageError: the disk refused.
    """
    from safetensors.torch import save

    name = f"step-{checkpoint.step:06d}.safetensors"
    path = write_bytes(folder / FOLDER / name, save(dict(checkpoint.tensors)))
    index = {
        "key": key,
        "step": checkpoint.step,
        "file": name,
        "sha256": file_digest(path),
        "history": list(checkpoint.history),
    }
    write_json(folder / FOLDER / INDEX, index)
    for old in (folder / FOLDER).glob("step-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_checkpoint(folder: Path, key: str) -> tuple[Checkpoint | None, str | None]:
    """Return the checkpoint that a fit of these inputs left, and a sentence where there is one that cannot be used."""
    path = folder / FOLDER / INDEX
    if not path.is_file():
        return None, None
    try:
        index: dict[str, Any] = read_json(path)
        if index["key"] != key:
            return None, f"{path.parent}: a checkpoint of other inputs is ignored; the fit starts afresh"
        file = path.parent / Path(index["file"]).name
        if not file.is_file() or file_digest(file) != index["sha256"]:
            return None, f"{file}: damaged, so the checkpoint is ignored; the fit starts afresh"
        return Checkpoint(int(index["step"]), read_weights(file), index["history"]), None
    except (DataError, MissingError, KeyError, TypeError, ValueError) as error:
        return None, f"{path}: damaged ({type(error).__name__}), so the checkpoint is ignored; the fit starts afresh"


def drop_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a fit that is done."""
    if (folder / FOLDER).is_dir():
        for path in (folder / FOLDER).iterdir():
            path.unlink()
        (folder / FOLDER).rmdir()
