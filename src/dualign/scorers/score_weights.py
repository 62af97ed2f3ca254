"""The weights of a Safe RLHF score checkpoint: which tensors belong to the backbone, the head and the normaliser.

Two layouts are in use (Dai et al. 2023, Safe RLHF; the second since 2024). What a checkpoint has is told by the keys
of its tensors and never by the flags of its config, some of which are stale.

=================  ===========================================  =========================================
part               early layout                                 later layout
=================  ===========================================  =========================================
backbone           PREFIX.*, with rotary ``inv_freq`` buffers   PREFIX.*
head               ``score_head.weight``                        ``score_head.weight``, ``score_head.bias``
normaliser         none                                         ``normalizer.mean``, ``.var``, ``.count``
files              ``pytorch_model*.bin``                       ``model*.safetensors``
=================  ===========================================  =========================================
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.engine.tensors import HARMLESS, check_finite, check_shapes, check_tensors
from dualign.errors import DataError, MissingError

if TYPE_CHECKING:
    from torch import Tensor

HEAD_WEIGHT, HEAD_BIAS = "score_head.weight", "score_head.bias"
MEAN, VARIANCE, COUNT = "normalizer.mean", "normalizer.var", "normalizer.count"
SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
BUFFERS = (MEAN, VARIANCE, COUNT)


@dataclass(frozen=True, slots=True)
class ScoreWeights:
    """The tensors of a checkpoint, sorted."""

    backbone: Mapping[str, Tensor]
    """By the backbone's own names, the checkpoint's prefix taken off."""
    head_weight: Tensor
    """Shape ``[score, hidden]``."""
    head_bias: Tensor | None
    """Shape ``[score]``; none: the early layout."""
    mean: Tensor | None
    """Shape ``[score]``; none: the checkpoint has no normaliser."""
    variance: Tensor | None


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder by name: from safetensors where there are any, else from ``.bin`` files.

    A ``.bin`` file is read as plain weights; one that holds any other object is refused, and nothing in it is run.

    Raises:
        MissingError: the folder has no weights, or a file that its index names is not there.
        DataError: a file is damaged or is not plain weights, or two files hold the same name.
    """
    safe, pickled = _files(folder, SAFETENSORS), _files(folder, PICKLED)
    if not safe and not pickled:
        raise MissingError(f"score checkpoint {folder}: has neither model*.safetensors nor pytorch_model*.bin")
    tensors: dict[str, Tensor] = {}
    for path in safe or pickled:
        found = _read_safe(path) if safe else _read_bin(path)
        if twice := tensors.keys() & found.keys():
            raise DataError(f"score checkpoint {path}: {min(twice)!r} stands in another file too")
        tensors |= found
    return tensors


def sort_tensors(
    tensors: Mapping[str, Tensor],
    *,
    prefix: str,
    expected: Mapping[str, Tensor],
    where: str,
    biased: bool,
    harmless: Collection[str] = (),
) -> ScoreWeights:
    """Return the tensors by part; rotary frequencies and a language model's head are left out.

    The buffers of a normaliser come together or not at all.

    Args:
        tensors: all tensors by the checkpoint's names.
        prefix: of the backbone's names, such as ``model.``.
        expected: the backbone's tensors by its own names; only their shapes are read.
        where: names the checkpoint in messages.
        biased: whether the head has a bias by the checkpoint's own word; without it, one that is there is read too.
        harmless: patterns of names that the architecture recomputes.

    Raises:
        MissingError: a tensor is missing, unknown or of another shape.
    """
    ignored = [HARMLESS, r"^lm_head\.", *harmless]
    body = {prefix + name: tensor for name, tensor in expected.items()}
    # The patterns are loose ("attn.bias"), so that they speak only of what the model has no place for.
    kept = {n: tensor for n, tensor in tensors.items() if n in body or not any(re.search(p, n) for p in ignored)}
    own = [name for name in (HEAD_WEIGHT, HEAD_BIAS, *BUFFERS) if name in kept]
    needed = {HEAD_WEIGHT, *([HEAD_BIAS] if biased else []), *(BUFFERS if any(b in kept for b in BUFFERS) else [])}
    check_tensors(f"score checkpoint {where}", missing=needed - kept.keys())
    check_shapes(
        f"score checkpoint {where}",
        needed=body,
        found={name: tensor for name, tensor in kept.items() if name not in own},
    )
    check_finite(f"score checkpoint {where}", {name: kept[name] for name in own})
    backbone = {name: kept[prefix + name] for name in expected}
    return ScoreWeights(backbone, kept[HEAD_WEIGHT], kept.get(HEAD_BIAS), kept.get(MEAN), kept.get(VARIANCE))


def _files(folder: Path, single: str) -> list[Path]:
    """Return the files that the index of ``single`` names; without an index, all that are called like it."""
    index = folder / f"{single}.index.json"
    if not index.is_file():
        return sorted(folder.glob(single.replace(".", "*.")))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [folder / name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"score checkpoint {index}: is no index of weight files ({error!r})") from error
    for path in paths:
        if path.parent != folder:
            raise DataError(f"score checkpoint {index}: names {str(path)!r}, which is not in the folder")
        if not path.is_file():
            raise MissingError(f"score checkpoint {path}: named by {index.name} and not there")
    return paths


def _read_safe(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise DataError(f"score checkpoint {path}: cannot be read ({error})") from error
    return tensors


def _read_bin(path: Path) -> dict[str, Tensor]:
    from pickle import UnpicklingError

    import torch

    # What the reader of plain weights raises on bytes that are none depends on where they first make no sense.
    senseless = (UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError)
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (*senseless, struct.error, OSError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise DataError(f"score checkpoint {path}: is not plain weights and was not loaded ({reason})") from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in found.items()
    ):
        raise DataError(f"score checkpoint {path}: expected tensors by name, found {type(found).__name__}")
    return dict(found)
