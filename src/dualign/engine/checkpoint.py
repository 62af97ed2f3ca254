"""The state of an unfinished fit on disk: safetensors and JSON, whole or absent, of these inputs or ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.engine.adapters import read_weights
from dualign.errors import DataError, MissingError
from dualign.hashing import file_digest
from dualign.runs.store import read_json, write_bytes, write_json

if TYPE_CHECKING:
    from torch import Tensor

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
