"""One base model in memory; the weights of a policy are put on it for a while and taken off again.

A policy's folder holds either a PEFT LoRA adapter (``adapter_config.json``, ``adapter_model.safetensors``) or full
weights (``model.safetensors``). The reference of a run is the base model: every adapter off.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.errors import DataError, MissingError, UsageError
from dualign.hashing import canonical_digest, file_digest
from dualign.models.language_model import LanguageModel
from dualign.models.tensors import WRAPPED, check_shapes, read_mapping, readable
from dualign.protocols import Policy
from dualign.runs.store import write_bytes, write_json

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
"""Settings of LoRA that are known here, where adapters come and go; ``adapter_merge`` knows the others."""
OWN_SCALE = ("use_rslora", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias")
"""Settings of LoRA under which an update is not ``alpha / r`` times B A everywhere."""
_NO_PART_OF_IT = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "task_type")
_TUNER = "_dualign_tuner"
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
    weights = file_digest(path)[:16]
    if path.name == FULL_WEIGHTS or not (path.parent / ADAPTER_CONFIG).is_file():
        return weights
    own = {key: value for key, value in _settings(path.parent).items() if key not in _NO_PART_OF_IT}
    return canonical_digest([weights, own])[:16]


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
    switch_off(model)
    path, weights = weights_file(policy), {}
    if path is not None and path.name == FULL_WEIGHTS:
        weights = full_weights(model, path)
    elif path is not None:
        name = resident(language_model, policy)
        if merged:
            weights = {key: base + update.to(base.dtype) for key, base, update in updated(model, name)}
        else:
            switch_on(model, name)
    try:
        with swapped(model, weights):
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
    kept = {name: parameters[name].data for name in weights}
    try:
        for name, value in weights.items():
            parameters[name].data = value.to(kept[name].device, kept[name].dtype)
        yield
    finally:
        for name, value in kept.items():
            parameters[name].data = value


def updated(model: Any, name: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the clean name and the base weight of every layer that the adapter ``name`` lies on, and its update."""
    import torch

    with torch.no_grad():
        for path, layer in _lora_layers(model).items():
            if name in layer.lora_A:
                yield f"{path}.weight", layer.get_base_layer().weight, layer.get_delta_weight(name)


def _lora_layers(model: Any) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLayer)}


def linear_names(model: Any, target_modules: str | tuple[str, ...]) -> list[str]:
    """Return the full paths of the modules that LoRA is put on; ``all-linear`` leaves the output head out.

    Of mixtures of experts, it leaves out too what PEFT would put on the experts instead.

    Raises:
        UsageError: a name in ``target_modules`` matches no linear layer, or one of those that are left out.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    layers = {
        path.removesuffix(".base_layer")
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and ".lora_" not in path
    }
    if target_modules == "all-linear":
        return _where_named(model, layers)
    chosen: set[str] = set()
    for target in [target_modules] if isinstance(target_modules, str) else target_modules:
        named = {path for path in layers if f".{path}".endswith(f".{target}")}
        if not named:
            known = ", ".join(sorted({path.rsplit(".", 1)[-1] for path in layers}))
            raise UsageError(f"target_modules: no linear layer is called '{target}'; there are {known}")
        chosen |= named
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
    for layer in _lora_layers(model).values():
        # PEFT warns when it has to choose another active adapter by itself.
        layer.set_adapter([], inference_mode=True)
        layer.delete_adapter(name)
    del tuner.peft_config[name]
    switch_off(model)


def adapter_parameters(model: Any, name: str) -> dict[str, Any]:
    """Return the parameters of one adapter, sorted, by the names they have in a saved PEFT adapter."""
    ending = re.compile(rf"\.{re.escape(name)}(?=\.|$)")
    found = {
        WRAPPED + ending.sub("", key): value
        for key, value in model.named_parameters()
        if ".lora_" in key and ending.search(key)
    }
    return dict(sorted(found.items()))


def switch_on(model: Any, name: str) -> None:
    """Put the adapter ``name`` in force, alone; no parameter requires a gradient."""
    for layer in _lora_layers(model).values():
        layer.set_adapter([name], inference_mode=True)
        layer._disable_adapters = False


def switch_off(model: Any) -> None:
    """Put every adapter out of force; nothing requires a gradient."""
    model.requires_grad_(False)
    for layer in _lora_layers(model).values():
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
    known = [] if tuner is None else list(tuner.peft_config)
    if name in known:
        return name
    _check_plain(folder)
    weights = read_weights(folder / ADAPTER_WEIGHTS)
    _check_layers(model, weights, folder)
    held = [other for other in known if other.startswith("policy_")]
    for other in held[: max(0, len(held) - RESIDENT_ADAPTERS + 1)]:
        remove_adapter(language_model, other)
    with readable(f"adapter {folder}", "cannot be put on this model"):
        config = LoraConfig.from_pretrained(str(folder))
        # The values are read, not drawn.
        config.inference_mode, config.init_lora_weights = True, True
        add_adapter(language_model, name, config)
    try:
        load_adapter_weights(model, name, weights, where=f"adapter {folder}")
    except MissingError:
        remove_adapter(language_model, name)
        raise
    # What PEFT puts on is in training mode: its dropout would act.
    model.eval()
    return name


def _settings(folder: Path) -> dict[str, Any]:
    return read_mapping(folder / ADAPTER_CONFIG, f"adapter {folder}")


def _check_plain(folder: Path) -> None:
    """Check that an adapter is LoRA without any part that is not computed here."""
    from peft import LoraConfig

    description, usual = _settings(folder), LoraConfig().to_dict()
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
        path = key.removeprefix(WRAPPED).partition(".lora_")[0]
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
    given, wanted = _settings(folder), config.to_dict()
    for key in ("r", "lora_alpha", *OWN_SCALE):
        if (given.get(key) or None) != (wanted.get(key) or None):
            raise UsageError(f"{folder}: was fitted with {key} {given.get(key)!r}, this fit has {wanted.get(key)!r}")


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

    one, two = weights_file(first), weights_file(second)
    if one is None or two is None or one.name != two.name:
        raise UsageError(f"merge: '{first.name}' and '{second.name}' must both be adapters or both be whole models")
    own, other = read_weights(one), read_weights(two)
    if one.name == FULL_WEIGHTS:
        check_shapes(f"merge: policy {two}", needed=own, found=other)
        whole = {name: mixed(tensor, other[name], share) for name, tensor in own.items()}
        write_bytes(folder / FULL_WEIGHTS, save(whole, metadata={"format": "pt"}))
        write_bytes(folder / "config.json", (one.parent / "config.json").read_bytes())
        return
    if strange := own.keys() ^ other.keys():
        raise UsageError(
            f"merge: '{first.name}' and '{second.name}' must be adapters of the same layers; one alone has "
            f"'{min(strange)}'"
        )
    configs = [_settings(path.parent) for path in (one, two)]
    if any(config.get(key) for config in configs for key in OWN_SCALE):
        raise UsageError("merge: an adapter whose scale is not alpha / r everywhere cannot be mixed by weights")
    # PEFT scales an update by alpha / r. The two may differ in it, so that each one's own is put into its B.
    scales = [config["lora_alpha"] / config["r"] for config in configs]
    joined = _stacked(own, other, factors=((1 - share) * scales[0], share * scales[1]))
    rank = sum(config["r"] for config in configs)
    write_bytes(folder / ADAPTER_WEIGHTS, save(joined, metadata={"format": "pt"}))
    write_json(folder / ADAPTER_CONFIG, {**configs[0], "r": rank, "lora_alpha": rank})


def mixed(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Return ``(1 - share) first + share second`` in the dtype of ``first``, rounded once."""
    import torch

    wide = torch.promote_types(first.dtype, torch.float32)
    return ((1 - share) * first.to(wide) + share * second.to(wide)).to(first.dtype)


def _stacked(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, factors: tuple[float, float]
) -> dict[str, Tensor]:
    """Return the adapter of both ranks together whose ``B A`` is the sum of the two times ``factors``."""
    import torch

    return {
        name: torch.cat([tensor, second[name]], dim=0)
        if "lora_A" in name
        else torch.cat([factors[0] * tensor, factors[1] * second[name]], dim=1)
        for name, tensor in first.items()
    }
