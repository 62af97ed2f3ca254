"""Pretrained models that score: loaded whole or as an adapter; in any batch, a text gets the score that it gets alone.

Loads with the weights-only formats alone (safetensors) and never runs code from a model's folder. Of an adapter as PEFT
saves reward models (``adapter_config.json``, ``adapter_model.safetensors``, the score head among its tensors), the base
that it names is loaded, and adapter and head are merged into it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from pydantic import Field

from dualign.errors import ConfigError, MissingError, ScorerError
from dualign.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_weights
from dualign.models.loading import check_one_model
from dualign.models.tensors import (
    HEADS,
    WRAPPED,
    check_shapes,
    check_vocabulary,
    embedding_rows,
    positions,
    quietly,
    read_model,
    readable,
)
from dualign.protocols import Direction
from dualign.records import FloatArray, Prompt
from dualign.scorers.spec import FunctionScorer, ScorerSpec, Setting, folder_revision, revision_of, tokenizer_revision

if TYPE_CHECKING:
    from torch import Tensor


class ReadingSpec(ScorerSpec):
    """How any model reads texts."""

    batch_size: int = Field(default=16, ge=1)
    """Changes speed alone: texts of one length are read together, without padding."""
    max_length: int = Field(default=512, ge=1)
    """Longer texts are an error: a cut text would get the score of another."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 halves the memory; on a GPU, whose products may round by the number of rows, scores then vary a little
    with ``batch_size``."""


class PretrainedSpec(ReadingSpec):
    """The keys of a scorer that is a model of transformers."""

    model: str
    """Folder or id of the model; its tokenizer is taken from the same place."""
    revision: str | None = None
    """Branch, tag or commit of an id."""


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A model and its tokenizer in memory, and the scorer that reads texts with them."""

    model: Any
    tokenizer: Any
    kind: str
    direction: Direction
    reading: Reading

    def scorer(self, score: Callable[[Sequence[Prompt], Sequence[str]], FloatArray], **facts: Any) -> FunctionScorer:
        """Return the scorer of ``score``; ``facts`` are all that decides its numbers besides model and tokenizer."""
        revision = revision_of(
            kind=self.kind,
            model=model_revision(self.model),
            dtype=str(self.model.dtype),
            tokenizer=tokenizer_revision(self.tokenizer),
            **facts,
        )
        return FunctionScorer(self.reading.scorer, self.direction, revision, score)


def load_pretrained(
    auto: Any, spec: PretrainedSpec, setting: Setting, *, kind: str, spare: Collection[str] = HEADS
) -> Pretrained:
    """Return the model that ``spec`` names, by the class ``auto`` of transformers; ``spare`` as in ``load_model``.

    Raises:
        MissingError: there is no such model, or it is not whole.
        ConfigError: ``max_length`` is more than the model can hold.
    """
    load: dict[str, Any] = {"name": spec.model, "folder": setting.folder, "revision": spec.revision}
    model, tokenizer = load_model(auto, dtype=spec.dtype, spare=spare, **load), load_tokenizer(**load)
    longest = fitting_length(spec, model, tokenizer, f"scorer {kind} ({spec.model})")
    reading = Reading(f"{kind}({Path(spec.model).name})", model.device, spec.batch_size, longest)
    return Pretrained(model, tokenizer, kind, setting.direction, reading)


SAFE: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}
"""No code of a model's folder is run, and nothing that could run any is loaded."""
_ADAPTER = "_dualign_adapter"
"""Attribute of a model that an adapter was merged into: the adapter's folder."""
TASKS = {"AutoModelForSequenceClassification": "SEQ_CLS", "AutoModelForCausalLM": "CAUSAL_LM"}
"""The adapters' task for each class of models that they can be read for."""
OUTPUTS = ("score.weight", "classifier.weight", "classifier.out_proj.weight", "classifier.decoder.weight")
"""The last layer of the heads of sequence classifiers: a row a label."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def locate(name: str, folder: Path) -> str:
    """Return the folder of a model where there is one (from ``folder``), else ``name`` as an id of the hub.

    Raises:
        MissingError: the name can only be a path, and nothing is there.
    """
    path = folder / Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise MissingError(f"scorer model: no such folder {str(path)!r}")
    return name


def load_tokenizer(name: str, folder: Path, revision: str | None = None) -> Any:
    """Return the tokenizer of a folder or id; of an adapter without one, its base's.

    Raises:
        MissingError: there is none.
    """
    from transformers import AutoTokenizer

    located = locate(name, folder)
    with readable(f"scorer model {located!r}", "cannot be loaded"):
        adapter = adapter_folder(located, revision)
        if adapter is not None and not any((adapter / file).is_file() for file in _TOKENIZER_FILES):
            config = _config(adapter)
            located, revision = _base(config, adapter, folder), config.revision
        return AutoTokenizer.from_pretrained(located, revision=revision, trust_remote_code=False)


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


def load_model(
    auto: Any, name: str, folder: Path, *, revision: str | None, dtype: str, spare: Collection[str] = HEADS
) -> Any:
    """Return the model of a folder or id in evaluation mode, on the GPU where there is one; an adapter is merged.

    Args:
        auto: the class of transformers that chooses the architecture.
        name: folder or id.
        folder: where relative paths start.
        revision: branch, tag or commit of an id.
        dtype: ``float32`` or ``bfloat16``.
        spare: heads that the files may hold and that the scorer does not read.

    Raises:
        MissingError: there is none, it has no safetensors weights, or a tensor is missing, unknown or of another shape.
    """
    import torch

    located = locate(name, folder)
    with readable(f"scorer model {located!r}", "cannot be loaded"), quietly():
        adapter = adapter_folder(located, revision)
        if adapter is None:
            model = load_whole(auto, located, revision=revision, dtype=dtype, spare=spare)
        else:
            model = load_adapted(auto, adapter, folder, dtype=dtype, spare=spare)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def load_whole(auto: Any, located: str, *, dtype: str, **checks: Any) -> Any:
    """Return the model of a folder or id, every tensor from its files; the rest is as in ``read_model``."""
    import torch

    return read_model(auto, located, f"scorer model {located!r}", dtype=getattr(torch, dtype), **SAFE, **checks)


def fitting_length(spec: ReadingSpec, model: Any, tokenizer: Any, where: str) -> int:
    """Return the longest text that is scored: ``max_length`` of ``spec``, a default one as far as the model goes.

    Raises:
        ConfigError: the spec states more than the model can hold.
        MissingError: a token has no row of the model's embedding.
    """
    check_vocabulary(tokenizer, embedding_rows(model), where)
    return usable(spec, model.config, f"{where}: max_length")


def usable(spec: Any, config: Any, what: str) -> int:
    """Return ``max_length`` of ``spec`` under a model's config, a default one as far as the model goes.

    Raises:
        ConfigError: the spec states more than the model can hold; ``what`` names the key.
    """
    longest = positions(config)
    if longest is None or spec.max_length <= longest:
        return int(spec.max_length)
    if "max_length" in spec.model_fields_set:
        raise ConfigError(f"{what} {spec.max_length}: the model has {longest} positions; give at most {longest}")
    return longest


def model_revision(model: Any) -> str:
    """Return a hash of a local model's files, or the commit of one from the hub; of an adapter and its base both."""
    folder = Path(model.config.name_or_path)
    own = folder_revision(folder) if folder.is_dir() else str(getattr(model.config, "_commit_hash", None))
    adapter = getattr(model, _ADAPTER, None)
    return own if adapter is None else f"{own}+{folder_revision(adapter)}"


Score: TypeAlias = "Callable[[Tensor, Tensor, list[int]], Tensor]"
"""(ids, mask, numbers of the sequences) -> values of each row; ids and mask are ``[row, token]``."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model reads texts of one length together, and who asks."""

    scorer: str
    device: Any
    batch_size: int
    max_length: int

    def __call__(self, sequences: Sequence[Sequence[int]], score: Score) -> FloatArray:
        """Return shape ``[sequence, ...]``: what ``score`` makes of them.

        Only sequences of one and the same length are read together, so that there is no padding. A text thus gets the
        number that it gets alone: with padding, attention adds up in another order, which in bfloat16 moves a state by
        up to a hundredth.

        Raises:
            ScorerError: a sequence is empty, or longer than ``max_length``: a cut text would get another's score.
        """
        import torch

        alike: dict[int, list[int]] = {}
        for index, tokens in enumerate(sequences):
            if len(tokens) > self.max_length:
                raise ScorerError(
                    f"scorer {self.scorer}: prompt {index} needs {len(tokens)} tokens, max_length is "
                    f"{self.max_length}; raise it, or shorten the prompts"
                )
            if not tokens:
                raise ScorerError(f"scorer {self.scorer}: prompt {index} has no tokens")
            alike.setdefault(len(tokens), []).append(index)
        found: list[FloatArray] = [np.empty(0)] * len(sequences)
        for _, rows in sorted(alike.items()):
            for start in range(0, len(rows), self.batch_size):
                indices = rows[start : start + self.batch_size]
                with torch.no_grad():
                    values = score(*padded_batch([sequences[index] for index in indices], self.device), indices)
                for index, value in zip(indices, values.double().cpu().numpy(), strict=True):
                    found[index] = value
        return np.array(found)

    def of(
        self, tokens: Callable[[Prompt, str], list[int]], score: Score
    ) -> Callable[[Sequence[Prompt], Sequence[str]], FloatArray]:
        """Return the function that gives what ``score`` makes of the tokens of each prompt with its response."""
        return lambda prompts, responses: self([tokens(*row) for row in zip(prompts, responses, strict=True)], score)


def padded_batch(sequences: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Return (ids, mask) of all sequences, padded on the right.

    Padding is always on the right, whatever side the tokenizer prefers: positions then count from the first
    token in every batch. The padding id is one that does not occur in the batch, so that a model which looks
    for the last token that is not padding finds the end token even where padding and end share an id.
    """
    import torch

    longest, pad = max(map(len, sequences)), absent_id(sequences)
    ids = torch.tensor([[*tokens, *[pad] * (longest - len(tokens))] for tokens in sequences])
    mask = torch.tensor([[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens in sequences])
    return ids.to(device), mask.to(device)


def absent_id(sequences: Sequence[Sequence[int]]) -> int:
    """Return the least token id that occurs in none of the sequences."""
    present = {token for sequence in sequences for token in sequence}
    return next(candidate for candidate in range(len(present) + 1) if candidate not in present)


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
    setattr(merged, _ADAPTER, adapter)
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
