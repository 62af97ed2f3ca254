"""Policies put together by their weights: no data, no training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from dualign.protocols import Policy
from dualign.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, FULL_WEIGHTS, read_weights, weights_file
from dualign.models.tensors import check_shapes
from dualign.errors import UsageError
from dualign.runs.store import write_bytes, write_json
import copy
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from dualign.models.adapter_folder import check_adapter, one_line
from dualign.models.adapters import ADAPTER_WEIGHTS
from dualign.models.tensors import WRAPPED, Mismatch, check_tensors
from dualign.errors import MissingError
from typing import TYPE_CHECKING

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


TOLERANCE = 1e-4
"""Of ``|a - b| / (1 + |a|)``, for log-probabilities a with the adapter beside the weights and b with it in them;
rounding in float32 is some thirty times smaller."""
PROBE_TOKENS = 48
BIAS_FLAGS = (("attention_bias",), ("mlp_bias",), ("attention_bias", "mlp_bias"), ("qkv_bias",), ("use_bias",))
"""Keys by which the config of a model says that its linear layers have a bias."""
_NAME = "default"
_WRAPPERS = re.compile(r"\.(token_adapter\.)?(base_layer|modules_to_save)\.")
"""What PEFT puts into the name of a module that it wraps."""
_ROWS = "trainable_tokens_delta"


def merge_adapter(model: Any, folder: Path) -> Any:
    """Return ``model`` with the adapter of ``folder`` in its weights, changed in place, in the dtype that it has.

    Where input and output embeddings were one and the adapter makes them two, they are two from here on, and the
    model's config says so. Load the model in float32 for this, and cast afterwards.

    Raises:
        MissingError: the adapter is not one of this model, lacks a tensor, has one too many, or cannot be merged.
    """
    import torch

    description = check_adapter(folder)
    widest = _resize(model, folder)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    ties, declared = _ties(model), model.config.tie_word_embeddings
    tokens = _probe_tokens(model, description)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = _wrapped(model, folder)
        beside = _log_probs(wrapped, tokens)
        _untie(wrapped)
        _give_biases(wrapped)
        with one_line(folder, "cannot be merged"):
            merged = wrapped.merge_and_unload(safe_merge=True)
        merged.config.tie_word_embeddings = declared
        _tie_again(merged, ties)
        _declare_biases(merged, names, folder)
        difference = float(((beside - _log_probs(merged, tokens)).abs() / (1 + beside.abs())).max())
    lacking = sorted(name for name, value in _vocabulary(merged).items() if bool(value.isnan().any()))
    if lacking:
        raise MissingError(
            f"adapter {folder}: tensor '{widest}' is for a larger vocabulary, and the rows of the new tokens are not "
            f"there for {', '.join(lacking)}"
        )
    # Written so that NaN is refused too.
    if not difference <= TOLERANCE:
        raise MissingError(
            f"adapter {folder}: merged into the weights it gives other log-probabilities than PEFT gives with it "
            f"beside them (off by {difference:.2g}, allowed {TOLERANCE:g}); it is not supported"
        )
    return merged.requires_grad_(False).eval()


def _resize(model: Any, folder: Path) -> str:
    """Return the tensor of the adapter that has most rows of tokens; embeddings and head have as many from here on.

    An adapter brings whole ones where tokens were added, in one form or another. New rows are NaN until the adapter's
    are put there, so that none can be made up.
    """
    from safetensors import safe_open

    now, names = model.get_input_embeddings().weight.shape[0], _vocabulary(model).keys()
    with (
        one_line(folder, f"{ADAPTER_WEIGHTS} is damaged"),
        safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file,
    ):
        found = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (it is no mapping)
    whole = {key: shape[0] for key, shape in found.items() if _WRAPPERS.sub(".", key.removeprefix(WRAPPED)) in names}
    widest = max(whole, key=whole.__getitem__, default="")
    rows = whole.get(widest, now)
    if rows != now:
        with one_line(folder, "is for another vocabulary"):
            model.resize_token_embeddings(rows, mean_resizing=False)
        for value in _vocabulary(model).values():
            value.data[now:] = float("nan")
    return widest


def _vocabulary(model: Any) -> dict[str, Tensor]:
    """Return the parameters that have a row a token, by every name that they have."""
    weights = [
        getattr(layer, name, None)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
        for name in ("weight", "bias")
    ]
    return {
        name: value
        for name, value in model.named_parameters(remove_duplicate=False)
        if any(value is weight for weight in weights)
    }


def _wrapped(model: Any, folder: Path) -> Any:
    """Return PEFT's model with the adapter beside the weights, every tensor in its place."""
    from peft import PeftConfig, PeftModel
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    with one_line(folder, "cannot be put on this model"):
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        wrapped = PeftModel(model, config, _NAME).eval()
    with one_line(folder, f"{ADAPTER_WEIGHTS} is damaged"):
        renamed = getattr(model, "_checkpoint_conversion_mapping", None) or {}
        weights = load_peft_weights(str(folder), device="cpu", key_mapping=renamed)
    expected = _saved(wrapped)
    slots = wrapped.state_dict()
    _check_tensors(folder, mismatched=_mismatched(weights, {**slots, **expected}))
    with one_line(folder, "lacks a tensor, or has one of another shape"):
        result = set_peft_model_state_dict(wrapped, weights, _NAME)
    # A tensor may be saved under one of several names, or under an old one that PEFT translates: what counts is whether
    # anything was written to it.
    written = {value.data_ptr() for key, value in slots.items() if key not in set(result.missing_keys)}
    missing = [key for key, value in expected.items() if key not in weights and value.data_ptr() not in written]
    strange = [key.replace(f".{_NAME}", "") for key in result.unexpected_keys]
    _check_tensors(folder, missing=missing, unexpected=[key for key in strange if not _is_twice(key, weights)])
    return wrapped


def _is_twice(key: str, weights: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor that found no place is in the folder under its proper name as well.

    PEFT writes embeddings and head in both forms once the vocabulary was changed, and new rows of tied ones twice.
    """
    import torch

    rows = [other for other in weights if key.endswith(_ROWS) and other.endswith(_ROWS)]
    others = {_WRAPPERS.sub(".", key), *rows} - {key}
    return key in weights and any(other in weights and torch.equal(weights[other], weights[key]) for other in others)


def _saved(wrapped: Any) -> dict[str, Tensor]:
    """Return the tensors that PEFT would save of the adapter, by the names that it would save them under."""
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = get_peft_model_state_dict(wrapped, adapter_name=_NAME, save_embedding_layers=False)
    return tensors


def _mismatched(weights: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> list[Mismatch]:
    pairs = [(key, tuple(value.shape), tuple(needed[key].shape)) for key, value in weights.items() if key in needed]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _check_tensors(
    folder: Path,
    *,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    mismatched: Iterable[Mismatch] = (),
) -> None:
    """Check that no tensor of an adapter is at fault; names are told without what PEFT puts before them all."""
    check_tensors(
        f"adapter {folder} (of another model, or damaged)",
        missing=[name.removeprefix(WRAPPED) for name in missing],
        unexpected=[name.removeprefix(WRAPPED) for name in unexpected],
        mismatched=[(name.removeprefix(WRAPPED), own, needed) for name, own, needed in mismatched],
    )


def _probe_tokens(model: Any, description: Mapping[str, Any]) -> Tensor:
    """Return ``[1, token]`` ids from the whole vocabulary, those that the adapter names among them."""
    import torch

    rows = model.get_input_embeddings().weight.shape[0]
    named: list[int] = []
    for key in ("trainable_token_indices", "token_indices"):
        given = description.get(key) or []
        lists = given.values() if isinstance(given, Mapping) else [given]
        named += [index for indices in lists for index in indices if isinstance(index, int) and 0 <= index < rows]
    spread = torch.linspace(0, rows - 1, PROBE_TOKENS).long().tolist()
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2 * PROBE_TOKENS
    return torch.tensor([(named[:PROBE_TOKENS] + spread)[:limit]], device=model.device)


def _log_probs(model: Any, tokens: Tensor) -> Tensor:
    """Return ``[token, vocabulary]`` log-probabilities of what follows each token."""
    log_probs: Tensor = model(input_ids=tokens, use_cache=False).logits[0].log_softmax(-1)
    return log_probs


def _ties(model: Any) -> list[list[str]]:
    """Return the names of parameters that are one tensor, a list for each tensor that has several names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [same for same in names.values() if len(same) > 1]


def _untie(model: Any) -> None:
    """Give every module tensors of its own, so that what is merged into one does not change another."""
    from torch import nn

    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) in seen:
                module._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
            seen.add(id(parameter))


def _tie_again(model: Any, ties: list[list[str]]) -> None:
    """Make one what was one tensor and is still equal; the config says where embeddings and head are two now."""
    import torch

    for names in ties:
        first = model.get_parameter(names[0])
        for name in names[1:]:
            owner, _, attribute = name.rpartition(".")
            if torch.equal(first, model.get_parameter(name)):
                model.get_submodule(owner)._parameters[attribute] = first
            else:
                model.config.tie_word_embeddings = False
                model.config.get_text_config().tie_word_embeddings = False
                model.all_tied_weights_keys = {}


def _give_biases(wrapped: Any) -> None:
    """Give a bias of 0 to layers without one whose adapter has one: PEFT merges a bias into a bias alone."""
    import torch
    from peft.tuners.lora import LoraLayer
    from torch import nn

    for module in wrapped.modules():
        if isinstance(module, LoraLayer) and any(module.lora_bias.values()):
            base = module.get_base_layer()
            if getattr(base, "bias", None) is None:
                zeros = torch.zeros(module.out_features, dtype=base.weight.dtype, device=base.weight.device)
                base.bias = nn.Parameter(zeros, requires_grad=False)


def _declare_biases(model: Any, before: set[str], folder: Path) -> None:
    """Let the model's config say that it has biases now, with 0 in the layers that the same key speaks of.

    Raises:
        MissingError: no key of its config does, so that the model could not be read back.
    """
    import torch
    from torch import nn

    new = {name for name, _ in model.named_parameters(remove_duplicate=False)} - before
    if not new:
        return
    for flags in BIAS_FLAGS:
        config = copy.deepcopy(model.config)
        if not all(hasattr(config, flag) for flag in flags):
            continue
        for flag in flags:
            setattr(config, flag, True)
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in type(model)(config).named_parameters(remove_duplicate=False)}
        if new | before <= shapes.keys():
            for name in shapes.keys() - new - before:
                owner, _, attribute = name.rpartition(".")
                zeros = torch.zeros(shapes[name], dtype=model.dtype, device=model.device)
                model.get_submodule(owner)._parameters[attribute] = nn.Parameter(zeros, requires_grad=False)
            for flag in flags:
                setattr(model.config, flag, True)
            return
    raise MissingError(
        f"adapter {folder}: lora_bias gives '{min(new)}' to layers that have no bias in {type(model).__name__}; "
        "this is not supported"
    )
