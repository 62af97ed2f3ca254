"""One base model in memory; the weights of a policy are put on it for a while and taken off again.

A policy's folder holds either a PEFT LoRA adapter (``adapter_config.json``, ``adapter_model.safetensors``) or full
weights (``model.safetensors``). The reference of a run is the base model: every adapter off.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from dualign.protocols import Policy
from dualign.models.language_model import LanguageModel
from dualign.models.tensors import check_shapes
from dualign.errors import DataError, MissingError, UsageError
from dualign.hashing import canonical_digest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
FULL_WEIGHTS = "model.safetensors"
RESIDENT_ADAPTERS = 8
"""Adapters kept in memory besides the one in use; an adapter is a few per cent of its model."""

PLAIN_SETTINGS = frozenset({
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "peft_type", "task_type", "inference_mode",
    "base_model_name_or_path", "revision", "peft_version", "auto_mapping", "loftq_config", "runtime_config",
})  # fmt: skip
"""Settings of LoRA that are known here, where adapters come and go; ``adapter_folder`` knows the others."""
_NO_PART_OF_IT = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "task_type")
_TUNER = "_dualign_tuner"
_KEY_PREFIX = "base_model.model."
_MERGE_IT = "have it merged into the model first (policy.adapter, or load_language_model with adapter)"


def weights_file(policy: Policy) -> Path | None:
    """Return the file of a policy's own weights, none for the reference.

    Raises:
        MissingError: the policy names a folder in which there are no weights.
    """
    if policy.state is None:
        return None
    folder = Path(policy.state)
    for name in (ADAPTER_WEIGHTS, FULL_WEIGHTS):
        if (folder / name).is_file():
            return folder / name
    raise MissingError(
        f"policy '{policy.name}': {folder} holds neither {ADAPTER_WEIGHTS} nor {FULL_WEIGHTS}; fit it first"
    )


def fingerprint(policy: Policy) -> str:
    """Return what identifies a policy's weights: ``base``, or 16 hexadecimal digits of a SHA-256.

    It is the hash of the file of weights, and of the adapter's settings where they scale them: the same tensors under
    another alpha are another policy.
    """
    path = weights_file(policy)
    if path is None:
        return "base"
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    if path.name == FULL_WEIGHTS or not (path.parent / ADAPTER_CONFIG).is_file():
        return digest
    settings = _description(path.parent)
    own = {key: value for key, value in settings.items() if key not in _NO_PART_OF_IT}
    return canonical_digest([digest, own])[:16]


@contextmanager
def activated(language_model: LanguageModel, policy: Policy, *, merged: bool = False) -> Iterator[Any]:
    """Yield the model, in evaluation mode, with the weights of ``policy`` in force.

    Afterwards the base is back, bit for bit.
    ``merged`` adds the adapter into the base weights meanwhile: faster to decode with, equal up to rounding.
    Not to be nested: the innermost exit leaves the base model.

    Raises:
        MissingError: the policy's folder holds no weights, or weights that are not of this model.
    """
    model = language_model.model
    model.eval()
    path = weights_file(policy)
    if path is None:
        switch_off(model)
        yield model
    elif path.name == FULL_WEIGHTS:
        switch_off(model)
        with swapped(model, full_weights(model, path)):
            yield model
    else:
        name = resident(language_model, policy)
        try:
            if merged:
                with swapped(model, _merged_weights(model, name)):
                    yield model
            else:
                switch_on(model, name)
                yield model
        finally:
            switch_off(model)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name.

    Raises:
        DataError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path}: not a readable safetensors file ({error}); restore it or fit again") from error
    return tensors


def full_weights(model: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a policy's full weights: every parameter of the model, and nothing else.

    Raises:
        DataError: the file is damaged.
        MissingError: a tensor is missing (the base model's would stand in for it), unknown or of another shape.
    """
    weights = read_weights(path)
    check_shapes(f"policy {path}", needed=base_parameters(model), found=weights)
    return weights


def clean_name(name: str) -> str:
    """Return a parameter's name as it is in the model without adapters."""
    return name.replace(".base_layer.", ".")


def base_parameters(model: Any) -> dict[str, Any]:
    """Return the base model's parameters by clean name; tied ones appear once, adapters do not appear."""
    return {clean_name(name): value for name, value in model.named_parameters() if ".lora_" not in name}


@contextmanager
def swapped(model: Any, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Put ``weights`` in the place of the base parameters of those names, and the very same tensors back at the end."""
    parameters = base_parameters(model)
    strange = [
        name for name, value in weights.items() if name not in parameters or parameters[name].shape != value.shape
    ]
    if strange:
        raise MissingError(f"weights: '{strange[0]}' is not a parameter of this model with that shape")
    kept = {name: parameters[name].data for name in weights}
    try:
        for name, value in weights.items():
            parameters[name].data = value.to(kept[name].device, kept[name].dtype)
        yield
    finally:
        for name, value in kept.items():
            parameters[name].data = value


def _merged_weights(model: Any, name: str) -> dict[str, Tensor]:
    import torch

    merged = {}
    with torch.no_grad():
        for path, layer in _lora_layers(model):
            if name in layer.lora_A:
                weight = layer.get_base_layer().weight
                merged[f"{path}.weight"] = weight + layer.get_delta_weight(name).to(weight.dtype)
    return merged


def _lora_layers(model: Any) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [(path, module) for path, module in model.named_modules() if isinstance(module, LoraLayer)]


def linear_names(model: Any, target_modules: str | tuple[str, ...]) -> list[str]:
    """Return the full paths of the modules that LoRA is put on; ``all-linear`` leaves the output head out.

    Of mixtures of experts, it leaves out too what PEFT would put on the experts instead.

    Raises:
        UsageError: a name in ``target_modules`` matches no linear layer, or one of those that are left out.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    layers = {path for path, _ in _lora_layers(model)}
    head = model.get_output_embeddings()
    for path, module in model.named_modules():
        inside = ".base_layer" in path or ".lora_" in path
        if isinstance(module, nn.Linear | Conv1D) and module is not head and not inside:
            layers.add(path)
    if target_modules == "all-linear":
        return _where_named(model, layers)
    wanted = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    for target in wanted:
        if not any(path == target or path.endswith(f".{target}") for path in layers):
            known = ", ".join(sorted({path.rsplit(".", 1)[-1] for path in layers}))
            raise UsageError(f"target_modules: no linear layer is called '{target}'; there are {known}")
    chosen = {path for path in layers if any(path == t or path.endswith(f".{t}") for t in wanted)}
    if moved := sorted(chosen - set(_where_named(model, layers))):
        raise UsageError(
            f"target_modules: PEFT would put the LoRA of '{moved[0]}' on the experts of {type(model).__name__}; name "
            "other layers, or take 'all-linear', which leaves such ones out"
        )
    return sorted(chosen)


def _where_named(model: Any, paths: Collection[str]) -> list[str]:
    """Return those of the paths on which PEFT puts LoRA when they are named.

    In some mixtures of experts it takes ``gate_proj`` and its like for the experts' own, as old checkpoints had them,
    and leaves dense and shared layers of that name without any.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=sorted(paths))
    convert_peft_config_for_transformers(config, model, None)
    return sorted(config.target_modules)


def add_adapter(language_model: LanguageModel, name: str, config: Any) -> None:
    """Put a LoRA adapter of that PEFT config on the model under ``name``, off; its weights are not set yet."""
    import torch
    from peft.tuners.lora import LoraModel

    model = language_model.model
    tuner = model.__dict__.get(_TUNER)
    # PEFT draws initial values from the global generator; every caller overwrites them.
    with torch.random.fork_rng(devices=[]):
        if tuner is None:
            tuner = LoraModel(model, config, name)
            model.__dict__[_TUNER] = tuner
        else:
            tuner.peft_config[name] = config
            # PEFT reads the config of the adapter that it holds for active, which may be gone by now.
            tuner.active_adapter = name
            try:
                tuner.inject_adapter(model, name)
            except ValueError:
                del tuner.peft_config[name]
                raise
    dtype = model.dtype
    for parameter in adapter_parameters(model, name).values():
        parameter.data = parameter.data.to(dtype)
    switch_off(model)


def remove_adapter(language_model: LanguageModel, name: str) -> None:
    """Take the adapter ``name`` off the model for good."""
    model = language_model.model
    tuner = model.__dict__[_TUNER]
    for _, layer in _lora_layers(model):
        # PEFT warns when it has to choose another active adapter by itself.
        layer.set_adapter([], inference_mode=True)
        layer.delete_adapter(name)
    del tuner.peft_config[name]
    switch_off(model)


def adapter_parameters(model: Any, name: str) -> dict[str, Any]:
    """Return the parameters of one adapter, sorted, by the names they have in a saved PEFT adapter."""
    ending = re.compile(rf"\.{re.escape(name)}(?=\.|$)")
    found = {
        _KEY_PREFIX + ending.sub("", key): value
        for key, value in model.named_parameters()
        if ".lora_" in key and ending.search(key)
    }
    return dict(sorted(found.items()))


def switch_on(model: Any, name: str) -> None:
    """Put the adapter ``name`` in force, alone; no parameter requires a gradient."""
    for _, layer in _lora_layers(model):
        layer.set_adapter([name], inference_mode=True)
        layer._disable_adapters = False


def switch_off(model: Any) -> None:
    """Put every adapter out of force; nothing requires a gradient."""
    model.requires_grad_(False)
    for _, layer in _lora_layers(model):
        layer.enable_adapters(False)


def resident(language_model: LanguageModel, policy: Policy) -> str:
    """Return the name under which the policy's adapter is in memory, reading it from its folder when it is not.

    Raises:
        MissingError: it is no LoRA adapter of inner linear layers of this model, or a tensor is missing or too many.
    """
    from peft import LoraConfig

    model, folder = language_model.model, Path(policy.state)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise MissingError(f"policy '{policy.name}': {folder} holds no {ADAPTER_CONFIG}; fit it again")
    name = "policy_" + fingerprint(policy)
    tuner = model.__dict__.get(_TUNER)
    if tuner is not None and name in tuner.peft_config:
        return name
    _check_plain(folder)
    weights = read_weights(folder / ADAPTER_WEIGHTS)
    config = LoraConfig.from_pretrained(str(folder))
    # The values are read, not drawn.
    config.inference_mode, config.init_lora_weights = True, True
    _check_layers(model, weights, folder)
    _make_room(language_model)
    try:
        add_adapter(language_model, name, config)
        load_adapter_weights(model, name, weights, where=f"adapter {folder}")
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise MissingError(f"adapter {folder}: cannot be put on this model ({reason})") from error
    except MissingError:
        remove_adapter(language_model, name)
        raise
    # What PEFT puts on is in training mode: its dropout would act.
    model.eval()
    return name


def _description(folder: Path) -> dict[str, Any]:
    """Return what ``adapter_config.json`` says.

    Raises:
        MissingError: it is damaged.
    """
    try:
        return dict(json.loads((folder / ADAPTER_CONFIG).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise MissingError(f"{folder / ADAPTER_CONFIG}: cannot be read ({error})") from error


def _check_plain(folder: Path) -> None:
    """Check that an adapter is LoRA without any part that is not computed here."""
    from peft import LoraConfig

    description, usual = _description(folder), LoraConfig().to_dict()
    kind = description.get("peft_type", "LORA")
    if kind != "LORA":
        raise MissingError(f"{folder}: an adapter of kind {kind!r}, expected LORA; {_MERGE_IT}")
    for key, value in description.items():
        harmless = not value or value == usual.get(key) or key in PLAIN_SETTINGS
        # These two starts leave the base weights as they are; others change them on loading.
        if not harmless and not (key == "init_lora_weights" and value in (True, "gaussian")):
            raise MissingError(f"{folder}: an adapter with {key} {str(value)[:80]!r} is not plain LoRA; {_MERGE_IT}")


def _check_layers(model: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Check that an adapter lies on inner linear layers alone: head and embeddings are read without it elsewhere."""
    outer = {path for path, _ in model.named_modules()} - set(linear_names(model, "all-linear"))
    for key in weights:
        path = key.removeprefix(_KEY_PREFIX).partition(".lora_")[0]
        if path in outer:
            raise MissingError(f"{folder}: the adapter changes '{path}', which is no inner linear layer; {_MERGE_IT}")


def load_adapter_weights(model: Any, name: str, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Copy ``weights`` (names of a saved PEFT adapter) into the adapter ``name``.

    Raises:
        MissingError: names or shapes are not those of the adapter; ``where`` says whose they are.
    """
    parameters = adapter_parameters(model, name)
    check_shapes(where, needed=parameters, found=weights)
    for key, parameter in parameters.items():
        parameter.data.copy_(weights[key])


def check_settings(folder: Path, config: Any) -> None:
    """Check that the adapter of ``folder`` acts under ``config`` as it does under its own settings.

    Raises:
        UsageError: rank, scale or kind are others, so that its tensors would be another policy.
    """
    given, wanted = _description(folder), config.to_dict()
    for key in ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias"):
        if (given.get(key) or None) != (wanted.get(key) or None):
            raise UsageError(f"{folder}: was fitted with {key} {given.get(key)!r}, this fit has {wanted.get(key)!r}")


def _make_room(language_model: LanguageModel) -> None:
    tuner = language_model.model.__dict__.get(_TUNER)
    held = [name for name in tuner.peft_config if name.startswith("policy_")] if tuner is not None else []
    for name in held[: max(0, len(held) - RESIDENT_ADAPTERS + 1)]:
        remove_adapter(language_model, name)
