"""The folder of a PEFT adapter: what it says of itself, whether it can be merged, and what it brings beside weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any
from dualign.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from dualign.errors import MissingError
from dualign.hashing import files_identity


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


def check_adapter(folder: Path) -> dict[str, Any]:
    """Return the description of a PEFT adapter (``adapter_config.json``) of a kind that can be merged.

    Raises:
        MissingError: there is no such adapter, it is not in safetensors, or it is of a kind that is not supported.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        raise MissingError(f"adapter {folder}: no {ADAPTER_CONFIG} is there; expected the folder of a PEFT adapter")
    try:
        description = json.loads((folder / ADAPTER_CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise MissingError(f"adapter {folder}: {ADAPTER_CONFIG} cannot be read ({_line(error)})") from error
    if not isinstance(description, dict):
        raise MissingError(f"adapter {folder}: {ADAPTER_CONFIG} holds no mapping; expected PEFT's settings")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickled = " (pickled adapter_model.bin is not read; save it as safetensors)"
        hint = pickled if (folder / "adapter_model.bin").exists() else ""
        raise MissingError(f"adapter {folder}: has no {ADAPTER_WEIGHTS}{hint}")
    _check_kind(folder, description)
    return description


def base_note(folder: Path, description: Mapping[str, Any], base: str | Path) -> list[str]:
    """Return what is to be said where the adapter names another base model than ``base``; nothing where it does not."""
    named = description.get("base_model_name_or_path")
    given = str(base)
    if not named or named in (given, given.partition("@")[0]):
        return []
    if isinstance(named, str) and Path(named).is_dir() and Path(given).is_dir() and Path(named).samefile(given):
        return []
    return [f"adapter {folder}: was made for the base model {_short(named)}, and is put on {_short(given)}"]


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
        with one_line(folder, "its tokenizer cannot be read"):
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    else:
        with one_line(folder, "its chat template cannot be read"):
            tokenizer.chat_template = _own_template(folder) or tokenizer.chat_template
    if not getattr(tokenizer, "chat_template", None):
        tokenizer.chat_template = getattr(base, "chat_template", None)
    return tokenizer


def _own_template(folder: Path) -> Any:
    """Return the chat template of a folder without a tokenizer; none: it has none."""
    if (folder / _CHAT_TEMPLATE).is_file():
        return (folder / _CHAT_TEMPLATE).read_text()
    path = folder / _TOKENIZER_CONFIG
    return json.loads(path.read_text()).get("chat_template") if path.is_file() else None


def _check_kind(folder: Path, description: Mapping[str, Any]) -> None:
    """Check that an adapter's kind and settings are among those that PEFT's merge keeps."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = description.get("peft_type")
    if kind not in KINDS or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise MissingError(
            f"adapter {folder}: of kind {_short(kind)}, which is no change of weights that could be merged; "
            f"expected one of {', '.join(KINDS)}"
        )
    task = description.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise MissingError(f"adapter {folder}: made for the task {_short(task)}, expected CAUSAL_LM")
    _check_keys(folder, kind, description)
    for key, reason in OWN_FORWARD.items():
        if description.get(key):
            raise MissingError(f"adapter {folder}: {key} {reason}, so that it cannot be merged; it is not supported")
    start = description.get("init_lora_weights", True)
    if kind == "LORA" and not any(start is known or start == known for known in INITS):
        raise MissingError(
            f"adapter {folder}: init_lora_weights {_short(start)} changes the base weights in a way that loading "
            "does not find again; convert it to plain LoRA (path_initial_model_for_weight_conversion of PEFT)"
        )


def _check_keys(folder: Path, kind: str, description: Mapping[str, Any]) -> None:
    """Check that the installed PEFT knows every setting that is not empty."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = {field.name for field in fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])} | {"runtime_config"}
    strange = sorted(key for key, value in description.items() if key not in known and value)
    if strange:
        raise MissingError(
            f"adapter {folder}: setting {_short(strange[0])} is unknown to the installed peft {peft.__version__}, "
            "which would leave it out; update peft"
        )


@contextmanager
def one_line(folder: Path, what: str) -> Iterator[None]:
    """Turn what PEFT and its libraries raise about a foreign adapter into one line that names it."""
    from safetensors import SafetensorError

    try:
        yield
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, NotImplementedError, ImportError,
        AssertionError, IndexError, SafetensorError,
    ) as error:  # fmt: skip
        raise MissingError(f"adapter {folder}: {what} ({type(error).__name__}: {_line(error)})") from error


def _line(error: Exception) -> str:
    """Return what an error says, on one line of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _short(value: object) -> str:
    """Return a value of a file as it may be shown: quoted, on one line, of bounded length."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
