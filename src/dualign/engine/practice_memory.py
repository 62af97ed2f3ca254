"""What on-policy training carries from one stretch to the next, beside the policy's weights."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dualign.backends.protocol import Policy, Scores
from dualign.records import FloatArray
from dualign.runs.store import read_json, write_bytes, write_json

if TYPE_CHECKING:
    from torch import Tensor

TENSORS = "practice.safetensors"
RECORD = "practice.json"


@dataclass
class Memory:
    """Multipliers, costs of late answers, and the state of the optimisers."""

    multipliers: FloatArray
    """Shape ``[constraint]``."""
    costs: list[deque[float]]
    """Costs of late answers to prompts that each constraint looks at."""
    step: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """``policy.NAME`` and ``critic.NAME``: the state of the two optimisers; empty before the first step."""

    def remember(self, scores: Scores) -> None:
        """Take in the costs of new answers; the oldest beyond the window are forgotten."""
        for k, held in enumerate(self.costs):
            held.extend(scores.costs[scores.inside[:, k], :, k].ravel().tolist())

    def means(self) -> FloatArray:
        """Return the mean of each cost over late answers; NaN before the first."""
        return np.array([np.mean(held) if held else np.nan for held in self.costs])

    def deviations(self) -> FloatArray:
        """Return the SD of each cost over late answers; 0 for a single one."""
        return np.array([np.std(held) if held else 0.0 for held in self.costs])

    def part(self, owner: str) -> dict[str, Tensor]:
        """Return the tensors of one optimiser by their own names."""
        return {name.removeprefix(f"{owner}."): t for name, t in self.tensors.items() if name.startswith(f"{owner}.")}


def recall(policy: Policy, multipliers: FloatArray, *, window: int) -> Memory:
    """Return what ``policy`` was left with; one that was never practised begins with ``multipliers``."""
    folder = None if policy.state is None else Path(policy.state)
    if folder is None or not (folder / RECORD).is_file():
        return Memory(np.array(multipliers, dtype=np.float64), [deque(maxlen=window) for _ in multipliers])
    from safetensors.torch import load_file

    record = read_json(folder / RECORD)
    held = [deque(row, maxlen=window) for row in record["costs"]]
    return Memory(np.array(record["multipliers"]), held, int(record["step"]), load_file(folder / TENSORS))


def keep(memory: Memory, folder: Path) -> None:
    """Write the memory beside the policy's weights."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().contiguous() for name, tensor in memory.tensors.items()}
    write_bytes(folder / TENSORS, save(tensors))
    costs = [list(held) for held in memory.costs]
    write_json(folder / RECORD, {"step": memory.step, "multipliers": memory.multipliers.tolist(), "costs": costs})
