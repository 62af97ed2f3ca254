"""Scorers that are an adapter: the base that it names, with the adapter and the head that it brings merged into it.

Reward models trained with PEFT are saved so: ``adapter_config.json``, ``adapter_model.safetensors``, the score head
among the adapter's tensors (``modules_to_save``).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.errors import MissingError
from dualign.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_weights
from dualign.models.loading import check_one_model
from dualign.models.tensors import HEADS, WRAPPED, check_shapes
from dualign.scorers.encoding import ADAPTER, load_whole, locate

if TYPE_CHECKING:
    from torch import Tensor

TASKS = {"AutoModelForSequenceClassification": "SEQ_CLS", "AutoModelForCausalLM": "CAUSAL_LM"}
"""The adapters' task for each class of models that they can be read for."""
OUTPUTS = ("score.weight", "classifier.weight", "classifier.out_proj.weight", "classifier.decoder.weight")
"""The last layer of the heads of sequence classifiers: a row a label."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def adapter_folder(located: str, revision: str | None) -> Path | None:
    """Return the folder of an adapter, from the hub where it is an id there; none: it is a whole model.

    Raises:
        MissingError: it holds a whole model and an adapter.
    """
    from transformers.utils import cached_file, find_adapter_config_file

    if Path(located).is_dir():
        check_one_model(Path(located))
        return Path(located) if (Path(located) / ADAPTER_CONFIG).is_file() else None
    if find_adapter_config_file(located, revision=revision) is None:
        return None
    return Path(str(cached_file(located, ADAPTER_WEIGHTS, revision=revision))).parent


def tokenizer_place(located: str, folder: Path, revision: str | None) -> tuple[str, str | None]:
    """Return where a scorer's tokenizer is, and its revision: of an adapter without one, it is its base's."""
    adapter = adapter_folder(located, revision)
    if adapter is None or any((adapter / name).is_file() for name in _TOKENIZER_FILES):
        return located, revision
    config = _config(adapter)
    return _base(config, adapter, folder), config.revision


def base_place(located: Path, folder: Path) -> str:
    """Return the folder or id that a scorer's config is read from: of an adapter, that of its base."""
    if not (located / ADAPTER_CONFIG).is_file():
        return str(located)
    return _base(_config(located), located, folder)


def load_adapted(auto: Any, adapter: Path, folder: Path, *, dtype: str, spare: Collection[str]) -> Any:
    """Return the base that the adapter names with the adapter merged into it, in float32, and then cast.

    Args:
        auto: the class of transformers that chooses the architecture.
        adapter: folder of the adapter.
        folder: where a relative path of the base may start; else at the adapter's folder, or beside it.
        dtype: of the result.
        spare: heads that the base may hold and that are not read.

    Raises:
        MissingError: the adapter is of another task, or a tensor of base, adapter or head is missing, unknown or of
            another shape.
    """
    import torch
    from peft import get_peft_model

    where = f"scorer model {str(adapter)!r}"
    config, tensors = _config(adapter), read_weights(adapter / ADAPTER_WEIGHTS)
    _check_task(config, auto, where)
    plain = {name.removeprefix(WRAPPED): tensor for name, tensor in tensors.items()}
    labels = [len(plain[name]) for name in OUTPUTS if name in plain]
    more = {"num_labels": labels[0]} if labels else {}
    base = _base(config, adapter, folder)
    model = load_whole(auto, base, revision=config.revision, dtype="float32", spare=spare, given=plain.keys(), **more)
    _resized(model, plain)
    # PEFT draws first values from the global generator, and all of them are overwritten; its warnings are of its own.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, config)
    _put(wrapped, tensors, where)
    merged = wrapped.merge_and_unload().to(getattr(torch, dtype))
    setattr(merged, ADAPTER, adapter)
    return merged


def _put(wrapped: Any, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy an adapter's tensors in; a head that only the base has is the base's own."""
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    inputs = wrapped.get_input_embeddings().weight
    names = {name for name, value in wrapped.named_parameters() if value is inputs}
    with_embedding = any(name in tensors for name in names)
    # Told so, because "auto" asks the hub.
    needed = get_peft_model_state_dict(wrapped, save_embedding_layers=with_embedding)
    whole = {name for name in needed if name.removeprefix(WRAPPED).split(".")[0] in HEADS}
    own = {name: tensor for name, tensor in needed.items() if name in whole and name not in tensors}
    check_shapes(where, needed={name: needed[name] for name in needed.keys() - own.keys()}, found=tensors)
    set_peft_model_state_dict(wrapped, {**own, **tensors})


def _config(adapter: Path) -> Any:
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(adapter))
    config.inference_mode = True
    return config


def _base(config: Any, adapter: Path, folder: Path) -> str:
    """Return the folder or id of an adapter's base; a relative path starts at ``folder``, in the adapter or beside it.

    Raises:
        MissingError: the adapter names none, or one that can only be a path and is not there.
    """
    name = config.base_model_name_or_path
    if not name:
        raise MissingError(f"scorer model {str(adapter)!r}: {ADAPTER_CONFIG} names no base_model_name_or_path")
    places = (start / Path(name).expanduser() for start in (folder, adapter, adapter.parent))
    return next((str(place) for place in places if place.is_dir()), None) or locate(name, folder)


def _check_task(config: Any, auto: Any, where: str) -> None:
    wanted = TASKS.get(auto.__name__)
    if wanted is None:
        raise MissingError(f"{where}: is an adapter; merge it into its base and name the folder that is saved then")
    if config.is_prompt_learning:
        raise MissingError(f"{where}: {config.peft_type} cannot be merged into a base; supported are LoRA and its kin")
    if config.task_type not in (wanted, None):
        raise MissingError(f"{where}: is an adapter of task {config.task_type}; {wanted} is needed here")


def _resized(model: Any, plain: Mapping[str, Tensor]) -> None:
    """Give the embedding the rows that the adapter has whole, as after tokens were added."""
    inputs = model.get_input_embeddings().weight
    for name in (name for name, value in model.named_parameters() if value is inputs and name in plain):
        model.resize_token_embeddings(len(plain[name]), mean_resizing=False)
