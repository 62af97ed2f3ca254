"""The weights that a training changes: put in force at their start; merged, or written to a folder, at its end."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualign.errors import UsageError
from dualign.models import adapters
from dualign.models.language_model import LanguageModel
from dualign.protocols import Policy
from dualign.runs.store import write_bytes, write_json
from dualign.train.settings import TrainingSettings

_TRAINED = "trained"


@contextmanager
def trained_weights(
    language_model: LanguageModel, start: Policy, settings: TrainingSettings
) -> Iterator[dict[str, Tensor]]:
    """Yield the parameters to train, at their starting values and in force; the base model is back at the end."""
    model = language_model.model
    model.eval()
    adapters.switch_off(model)
    held = str(model.dtype).removeprefix("torch.")
    if settings.dtype not in ("auto", held):
        raise UsageError(f"training.dtype: {settings.dtype} was asked for, but the model was loaded in {held}")
    path = adapters.weights_file(start)
    if path is not None and (path.name == adapters.ADAPTER_WEIGHTS) != (settings.adapter == "lora"):
        raise UsageError(f"training: adapter '{settings.adapter}' cannot start from the {path.name} of '{start.name}'")
    if settings.adapter == "full":
        weights = {name: p.detach().clone() for name, p in adapters.base_parameters(model).items()}
        if path is not None:
            weights |= adapters.full_weights(model, path)
        with adapters.swapped(model, weights):
            parameters = adapters.base_parameters(model)
            try:
                yield _requiring_gradient(parameters)
            finally:
                adapters.switch_off(model)
                model.zero_grad(set_to_none=True)
        return
    config = lora_config(model, settings)
    if path is not None:
        adapters.check_settings(path.parent, config)
    adapters.add_adapter(language_model, _TRAINED, config)
    try:
        if path is None:
            _initialise(model, settings.adapter_seed)
        else:
            adapters.load_adapter_weights(model, _TRAINED, adapters.read_weights(path), where=str(path.parent))
        adapters.switch_on(model, _TRAINED)
        _set_dropout(model, on=True)
        yield _requiring_gradient(adapters.adapter_parameters(model, _TRAINED))
    finally:
        model.eval()
        adapters.remove_adapter(language_model, _TRAINED)


def lora_config(model: Any, settings: TrainingSettings) -> Any:
    """Return the PEFT config of an adapter of these settings on ``model``."""
    from peft import LoraConfig

    paths = adapters.linear_names(model, settings.target_modules)
    names = sorted({path.rsplit(".", 1)[-1] for path in paths})
    return LoraConfig(
        r=settings.lora_r,
        # PEFT scales by alpha / r; an alpha that is a whole number is written as one.
        lora_alpha=int(settings.lora_alpha) if float(settings.lora_alpha).is_integer() else settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=names,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=getattr(model, "name_or_path", "") or None,
    )


def _initialise(model: Any, seed: int) -> None:
    """A is uniform as in PEFT, B is 0: a fresh adapter changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapters.adapter_parameters(model, _TRAINED).items():
        bound = 1 / math.sqrt(parameter.shape[1])
        if "lora_A" in name:
            parameter.data.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
        else:
            parameter.data.zero_()


def _requiring_gradient(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return parameters


def _set_dropout(model: Any, *, on: bool) -> None:
    """Dropout acts in the adapter alone: the base model stays in evaluation mode, as in the reference."""
    for name, module in model.named_modules():
        if name.endswith(f"lora_dropout.{_TRAINED}"):
            module.train(on)


@contextmanager
def dropout_off(model: Any) -> Iterator[None]:
    """Let the weights in training act as they will once trained: without dropout."""
    _set_dropout(model, on=False)
    try:
        yield
    finally:
        _set_dropout(model, on=True)


@contextmanager
def keyed_dropout(dropout: float, device: torch.device, key: Sequence[int]) -> Iterator[None]:
    """Draw dropout by ``key`` alone and leave the global generators as they were; where it is 0, do nothing."""
    if dropout == 0:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        drawn = np.random.SeedSequence(list(key)).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(drawn >> np.uint64(1)))
        yield


def save_policy(
    language_model: LanguageModel, parameters: Mapping[str, Tensor], masters: Mapping[str, Tensor],
    settings: TrainingSettings, folder: Path,
) -> Path:  # fmt: skip
    """Return the file of the trained weights in ``folder``: a PEFT adapter, of ``masters``, or the whole model."""
    from safetensors.torch import save

    model, lora = language_model.model, settings.adapter == "lora"
    if lora:
        config = lora_config(model, settings).to_dict()
        plain = {name: sorted(v) if isinstance(v, set) else v for name, v in config.items()}
        write_json(folder / adapters.ADAPTER_CONFIG, {**plain, "inference_mode": True})
    tensors = {name: (masters[name] if lora else p.detach()).contiguous() for name, p in parameters.items()}
    file = folder / (adapters.ADAPTER_WEIGHTS if lora else adapters.FULL_WEIGHTS)
    write_bytes(file, save(tensors, metadata={"format": "pt"}))
    if not lora:
        model.config.save_pretrained(folder)
    return file


def merged_weights(model: Any, masters: Mapping[str, Tensor], settings: TrainingSettings) -> dict[str, Tensor]:
    """Return by clean name the base weights that a training changed, in the dtype of its ``masters``."""
    if settings.adapter == "full":
        return dict(masters)
    for name, parameter in adapters.adapter_parameters(model, _TRAINED).items():
        parameter.data = masters[name]
    return {name: base.to(update.dtype) + update for name, base, update in adapters.updated(model, _TRAINED)}


def put_weights(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the base for good, rounded to what it computes in."""
    parameters = adapters.base_parameters(model)
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


def fingerprint(model: Any) -> str:
    """Return 12 hexadecimal digits of the base weights in memory; they are read one by one."""
    found = hashlib.sha256()
    for name, value in sorted(adapters.base_parameters(model).items()):
        found.update(name.encode() + b"\0")
        found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    return found.hexdigest()[:12]
