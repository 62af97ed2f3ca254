"""Policies put together by their weights: no data, no training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dualign.backends.protocol import Policy
from dualign.engine.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, FULL_WEIGHTS, read_weights, weights_file
from dualign.engine.tensors import check_shapes
from dualign.errors import UsageError
from dualign.runs.store import write_bytes, write_json

if TYPE_CHECKING:
    from torch import Tensor

MODEL_CONFIG = "config.json"


def merged(first: Policy, second: Policy, *, share: float, folder: Path) -> None:
    """Write ``(1 - share) first + share second`` to ``folder``, as an adapter where both are adapters.

    Two updates ``scale B A`` are one of the sum of their ranks with A stacked and B side by side, so that the merge of
    adapters is exact. What else lies beside the weights, the memory of on-policy training above all, is of one of the
    two alone and stays there.

    Raises:
        UsageError: one is an adapter and the other is not, one is the reference, which has no weights of its own, or
            two adapters lie on different layers.
    """
    from safetensors.torch import save

    files = [weights_file(policy) for policy in (first, second)]
    if files[0] is None or files[1] is None or files[0].name != files[1].name:
        raise UsageError(f"merge: '{first.name}' and '{second.name}' must both be adapters or both be whole models")
    tensors = [read_weights(path) for path in files if path is not None]
    if files[0].name == FULL_WEIGHTS:
        check_shapes(f"merge: policy {files[1]}", needed=tensors[0], found=tensors[1])
        whole = {name: mixed(tensor, tensors[1][name], share) for name, tensor in tensors[0].items()}
        write_bytes(folder / FULL_WEIGHTS, save(whole, metadata={"format": "pt"}))
        write_bytes(folder / MODEL_CONFIG, (files[0].parent / MODEL_CONFIG).read_bytes())
        return
    if tensors[0].keys() != tensors[1].keys():
        strange = min(tensors[0].keys() ^ tensors[1].keys())
        raise UsageError(
            f"merge: '{first.name}' and '{second.name}' must be adapters of the same layers; one alone has '{strange}'"
        )
    configs = [json.loads((path.parent / ADAPTER_CONFIG).read_text()) for path in files if path is not None]
    for config in configs:
        if any(config.get(key) for key in ("use_rslora", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias")):
            raise UsageError("merge: an adapter whose scale is not alpha / r everywhere cannot be mixed by weights")
    # PEFT scales an update by alpha / r. The two may differ in it, so that each one's own is put into its B.
    own, other = (config["lora_alpha"] / config["r"] for config in configs)
    joined = stacked(*tensors, factors=((1 - share) * own, share * other))
    rank = sum(config["r"] for config in configs)
    write_bytes(folder / ADAPTER_WEIGHTS, save(joined, metadata={"format": "pt"}))
    write_json(folder / ADAPTER_CONFIG, {**configs[0], "r": rank, "lora_alpha": rank})


def mixed(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Return ``(1 - share) first + share second`` in the dtype of ``first``, rounded once."""
    import torch

    wide = torch.promote_types(first.dtype, torch.float32)
    return ((1 - share) * first.to(wide) + share * second.to(wide)).to(first.dtype)


def stacked(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, factors: tuple[float, float]
) -> dict[str, Tensor]:
    """Return the adapter of both ranks together whose ``B A`` is the sum of the two times ``factors``."""
    import torch

    joined = {}
    for name, tensor in first.items():
        other = second[name]
        if "lora_A" in name:
            joined[name] = torch.cat([tensor, other], dim=0)
        else:
            joined[name] = torch.cat([factors[0] * tensor, factors[1] * other], dim=1)
    return joined
