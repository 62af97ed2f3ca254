"""An adapter that others trained with PEFT: whether its folder can be used, and its merge into its base's weights."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.errors import MissingError, shown
from dualign.hashing import files_identity
from dualign.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from dualign.models.tensors import WRAPPED, check_tensors, headers, mismatches, read_mapping, readable

if TYPE_CHECKING:
    from torch import Tensor

KINDS = (
    "LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "LN_TUNING", "TRAINABLE_TOKENS", "HRA",
    "FOURIERFT", "VBLORA", "C3A", "MISS", "SHIRA", "ROAD", "DELORA",
)  # fmt: skip
"""PEFT's names of the kinds that are a change of weights; a prompt that is learned, or a change that depends on the
input, is none."""
INITS = (True, False, "gaussian", "orthogonal", "eva", "mica", "pissa", "olora")
"""Starts of LoRA whose base weights PEFT finds again on loading. The others need what trained them (CorDA, LoRA-GA,
LoftQ), or take a random factorisation (``pissa_niter_N``)."""
OWN_FORWARD = {
    "alora_invocation_tokens": "acts after certain tokens alone",
    "arrow_config": "routes by the input",
    "layer_replication": "repeats layers",
    "megatron_config": "needs Megatron's layers",
    "monteclora_config": "draws its weights",
    "kasa_config": "cuts the base weights",
    "use_bdlora": "splits its layers in blocks",
    "use_qalora": "needs quantised base weights",
}
"""Settings of LoRA that no change of the base weights stands for."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_CHAT_TEMPLATE = "chat_template.jinja"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_IDENTITY = (
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, *TOKENIZERS, "merges.txt", "added_tokens.json", "special_tokens_map.json",
    _TOKENIZER_CONFIG, _CHAT_TEMPLATE,
)  # fmt: skip
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


def check_adapter(folder: Path) -> dict[str, Any]:
    """Return the description of a PEFT adapter (``adapter_config.json``) of a kind that can be merged.

    Raises:
        MissingError: there is no such adapter, it is not in safetensors, or it is of a kind that is not supported.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        raise MissingError(f"adapter {folder}: no {ADAPTER_CONFIG} is there; expected the folder of a PEFT adapter")
    description = read_mapping(folder / ADAPTER_CONFIG, f"adapter {folder}")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickled = " (pickled adapter_model.bin is not read; save it as safetensors)"
        hint = pickled if (folder / "adapter_model.bin").exists() else ""
        raise MissingError(f"adapter {folder}: has no {ADAPTER_WEIGHTS}{hint}")
    if reason := _unfit(description):
        raise MissingError(f"adapter {folder}: {reason}")
    return description


def base_note(folder: Path, description: Mapping[str, Any], base: str | Path) -> list[str]:
    """Return what is to be said where the adapter names another base model than ``base``; nothing where it does not."""
    named = description.get("base_model_name_or_path")
    given = str(base)
    if not named or named in (given, given.partition("@")[0]):
        return []
    if isinstance(named, str) and Path(named).is_dir() and Path(given).is_dir() and Path(named).samefile(given):
        return []
    return [f"adapter {folder}: was made for the base model {_quoted(named)}, and is put on {_quoted(given)}"]


def adapter_identity(folder: Path) -> str:
    """Return 16 hexadecimal digits that stand for an adapter's settings, weights, tokenizer and chat template."""
    return files_identity(folder / name for name in _IDENTITY)


def own_tokenizer(folder: Path, base: Any) -> Any:
    """Return the adapter's tokenizer where it brings one, else ``base``; the chat template likewise.

    Raises:
        MissingError: it cannot be read.
    """
    from transformers import AutoTokenizer

    tokenizer = base
    if any((folder / name).is_file() for name in TOKENIZERS):
        with readable(f"adapter {folder}", "its tokenizer cannot be read"):
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    else:
        with readable(f"adapter {folder}", "its chat template cannot be read"):
            if (folder / _CHAT_TEMPLATE).is_file():
                tokenizer.chat_template = (folder / _CHAT_TEMPLATE).read_text()
            elif (folder / _TOKENIZER_CONFIG).is_file():
                own = read_mapping(folder / _TOKENIZER_CONFIG, f"adapter {folder}").get("chat_template")
                tokenizer.chat_template = own or tokenizer.chat_template
    if not getattr(tokenizer, "chat_template", None):
        tokenizer.chat_template = getattr(base, "chat_template", None)
    return tokenizer


def _unfit(description: Mapping[str, Any]) -> str:
    """Return why an adapter is none that PEFT's merge keeps whole, by its kind and settings; empty: it is."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind, task = description.get("peft_type"), description.get("task_type")
    if kind not in KINDS or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        return (
            f"of kind {_quoted(kind)}, which is no change of weights that could be merged; "
            f"expected one of {', '.join(KINDS)}"
        )
    if task not in (None, "CAUSAL_LM"):
        return f"made for the task {_quoted(task)}, expected CAUSAL_LM"
    known = {field.name for field in fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])} | {"runtime_config"}
    if strange := sorted(key for key, value in description.items() if key not in known and value):
        return (
            f"setting {_quoted(strange[0])} is unknown to the installed peft {peft.__version__}, which would leave it "
            "out; update peft"
        )
    for key, reason in OWN_FORWARD.items():
        if description.get(key):
            return f"{key} {reason}, so that it cannot be merged; it is not supported"
    start = description.get("init_lora_weights", True)
    if kind == "LORA" and not any(start is known or start == known for known in INITS):
        return (
            f"init_lora_weights {_quoted(start)} changes the base weights in a way that loading does not find again; "
            "convert it to plain LoRA (path_initial_model_for_weight_conversion of PEFT)"
        )
    return ""


def _quoted(value: object) -> str:
    return shown(str(value), 120)


def merge_adapter(model: Any, folder: Path, description: Mapping[str, Any]) -> Any:
    """Return ``model`` with the adapter of ``folder`` in its weights, changed in place, in the dtype that it has.

    ``description`` is what ``check_adapter`` gives. Where input and output embeddings were one and the adapter makes
    them two, they are two from here on, and the model's config says so. Load the model in float32 for this, and cast
    afterwards.

    Raises:
        MissingError: the adapter is not one of this model, lacks a tensor, has one too many, or cannot be merged.
    """
    import torch

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
        with readable(f"adapter {folder}", "cannot be merged"):
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
    now, names = model.get_input_embeddings().weight.shape[0], _vocabulary(model).keys()
    with readable(f"adapter {folder}", f"{ADAPTER_WEIGHTS} is damaged"):
        found = headers(folder / ADAPTER_WEIGHTS).items()
    plain = {key: _WRAPPERS.sub(".", key.removeprefix(WRAPPED)) for key, _ in found}
    whole = {key: shape[0] for key, (_, shape) in found if plain[key] in names}
    widest = max(whole, key=whole.__getitem__, default="")
    rows = whole.get(widest, now)
    if rows != now:
        with readable(f"adapter {folder}", "is for another vocabulary"):
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
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    where = f"adapter {folder}"
    check = partial(check_tensors, f"{where} (of another model, or damaged)", prefix=WRAPPED)
    with readable(where, "cannot be put on this model"):
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        wrapped = PeftModel(model, config, _NAME).eval()
    with readable(where, f"{ADAPTER_WEIGHTS} is damaged"):
        renamed = getattr(model, "_checkpoint_conversion_mapping", None) or {}
        weights = load_peft_weights(str(folder), device="cpu", key_mapping=renamed)
    # What PEFT would save of it, by the names that it would save them under, and all that there is.
    expected = get_peft_model_state_dict(wrapped, adapter_name=_NAME, save_embedding_layers=False)
    slots = wrapped.state_dict()
    check(mismatched=mismatches({**slots, **expected}, weights))
    with readable(where, "lacks a tensor, or has one of another shape"):
        result = set_peft_model_state_dict(wrapped, weights, _NAME)
    # A tensor may be saved under one of several names, or under an old one that PEFT translates: what counts is whether
    # anything was written to it.
    written = {value.data_ptr() for key, value in slots.items() if key not in set(result.missing_keys)}
    missing = [key for key, value in expected.items() if key not in weights and value.data_ptr() not in written]
    strange = [key.replace(f".{_NAME}", "") for key in result.unexpected_keys]
    check(missing=missing, unexpected=[key for key in strange if not _is_twice(key, weights)])
    return wrapped


def _is_twice(key: str, weights: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor that found no place is in the folder under its proper name as well.

    PEFT writes embeddings and head in both forms once the vocabulary was changed, and new rows of tied ones twice.
    """
    import torch

    rows = [other for other in weights if key.endswith(_ROWS) and other.endswith(_ROWS)]
    others = {_WRAPPERS.sub(".", key), *rows} - {key}
    return key in weights and any(other in weights and torch.equal(weights[other], weights[key]) for other in others)


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


def _ties(model: Any) -> dict[str, str]:
    """Return the names of parameters that are one tensor with an earlier one, whose name is the value."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: first[id(value)] for name, value in named if first.setdefault(id(value), name) != name}


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


def _tie_again(model: Any, ties: Mapping[str, str]) -> None:
    """Make one what was one tensor and is still equal; the config says where embeddings and head are two now."""
    import torch

    for name, first in ties.items():
        owner, _, attribute = name.rpartition(".")
        kept = model.get_parameter(first)
        if torch.equal(kept, model.get_parameter(name)):
            model.get_submodule(owner)._parameters[attribute] = kept
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
        if not all(hasattr(model.config, flag) for flag in flags):
            continue
        config = copy.deepcopy(model.config)
        config.update(dict.fromkeys(flags, True))
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in type(model)(config).named_parameters(remove_duplicate=False)}
        if new | before <= shapes.keys():
            for name in shapes.keys() - new - before:
                owner, _, attribute = name.rpartition(".")
                zeros = torch.zeros(shapes[name], dtype=model.dtype, device=model.device)
                model.get_submodule(owner)._parameters[attribute] = nn.Parameter(zeros, requires_grad=False)
            model.config.update(dict.fromkeys(flags, True))
            return
    raise MissingError(
        f"adapter {folder}: lora_bias gives '{min(new)}' to layers that have no bias in {type(model).__name__}; "
        "this is not supported"
    )
