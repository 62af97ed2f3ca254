"""Policies put together by their weights: no data, no training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dualign.backends.protocol import Policy
from dualign.engine.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, FULL_WEIGHTS, read_weights, weights_file
from dualign.errors import UsageError
from dualign.runs.store import write_bytes, write_json

if TYPE_CHECKING:
    from torch import Tensor


def merged(first: Policy, second: Policy, *, share: float, folder: Path) -> None:
    """Write ``(1 - share) first + share second`` to ``folder``, as an adapter where both are adapters.

    Two updates ``scale B A`` of rank r are one of rank 2 r with A stacked and B side by side, so that the merge of
    adapters is exact.

    Raises:
        UsageError: one is an adapter and the other is not, or one is the reference, which has no weights of its own.
    """
    from safetensors.torch import save

    files = [weights_file(policy) for policy in (first, second)]
    if files[0] is None or files[1] is None or files[0].name != files[1].name:
        raise UsageError(f"merge: '{first.name}' and '{second.name}' must both be adapters or both be whole models")
    tensors = [read_weights(path) for path in files if path is not None]
    if files[0].name == FULL_WEIGHTS:
        whole = {name: (1 - share) * tensor + share * tensors[1][name] for name, tensor in tensors[0].items()}
        write_bytes(folder / FULL_WEIGHTS, save(whole, metadata={"format": "pt"}))
        for extra in files[0].parent.glob("*.json"):
            if extra.name != "fit.json":
                write_bytes(folder / extra.name, extra.read_bytes())
        return
    config = json.loads((files[0].parent / ADAPTER_CONFIG).read_text())
    write_bytes(folder / ADAPTER_WEIGHTS, save(stacked(*tensors, share=share), metadata={"format": "pt"}))
    # PEFT scales by alpha / r: both doubled, the scale stays.
    doubled = {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"]}
    write_json(folder / ADAPTER_CONFIG, {**config, **doubled})


def stacked(first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, share: float) -> dict[str, Tensor]:
    """Return the adapter of twice the rank whose update is ``(1 - share)`` of the first and ``share`` of the second."""
    import torch

    joined = {}
    for name, tensor in first.items():
        other = second[name]
        if "lora_A" in name:
            joined[name] = torch.cat([tensor, other], dim=0)
        else:
            joined[name] = torch.cat([(1 - share) * tensor, share * other], dim=1)
    return joined
