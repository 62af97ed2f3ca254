"""Frozen hidden states of a language model or encoder as features of an answer: one layer, pooled over the response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from dualign.errors import ConfigError, DataError, UsageError
from dualign.hashing import canonical_digest
from dualign.models.language_model import choose_compute, text_tokens
from dualign.models.loading import default_cache, identity, resolve
from dualign.models.templates import make_template
from dualign.models.tensors import UNLIMITED, positions, readable
from dualign.records import FloatArray, Prompt
from dualign.runs.store import write_bytes
from dualign.scorers.encoding import Reading, load_model, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

Pooling = Literal["mean", "last", "both"]
BATCH_SIZE = 16


@dataclass(frozen=True, slots=True)
class StateSettings:
    """Which states are read, and how: all that decides their numbers besides the texts."""

    model: str
    """As in ``policy.model`` of a job: a folder, a hub id, a GGUF file or ``package:NAME``."""
    layer: int | None
    """So many layers from the bottom are computed, the final norm is applied to what they give; none: all."""
    pooling: Pooling
    """Mean over the response's tokens, the last token (the end token where there is one), or both."""
    template: Literal["chat", "plain", "beaver"]
    max_length: int
    """Longer texts are an error: a cut text would get the features of another."""
    dtype: Literal["auto", "float32", "bfloat16"]
    """bfloat16 is faster on many machines; on a GPU, whose products may round by the number of rows, features then
    vary a little with what else is read. ``auto``: by a second of timing; a reader's own settings say what was
    chosen."""


def faster_dtype(model: Any) -> Literal["float32", "bfloat16"]:
    """Return ``float32`` or ``bfloat16``, whichever is faster for ``model`` on this machine; takes about a second."""
    return "bfloat16" if choose_compute(model).dtype == "bfloat16" else "float32"


class StateReader:
    """A model in memory, cut off above the layer that is read."""

    def __init__(self, settings: StateSettings) -> None:
        """Load the model.

        Raises:
            MissingError: there is no such model.
            ConfigError: it has fewer layers, or no chat template where one was asked for.
        """
        from transformers import AutoModel

        place = resolve(settings.model)
        self.identity = identity(place)
        load: dict[str, Any] = {"name": str(place), "folder": Path(), "revision": None}
        self._model = load_model(AutoModel, dtype=settings.dtype.replace("auto", "float32"), **load)
        if settings.dtype == "auto":
            settings = replace(settings, dtype=faster_dtype(self._model))
            # Read anew: a cast would also round what the model keeps in float32, such as its positions.
            self._model = load_model(AutoModel, dtype=settings.dtype, **load)
        self.settings = settings
        self._tokenizer = load_tokenizer(**load)
        keep_layers(self._model, settings.layer)
        try:
            self._template = make_template(settings.template, self._tokenizer)
        except UsageError as error:
            raise ConfigError(f"scorer fitted: {error}") from error

    def lengths(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[int]:
        """Return the tokens of each prompt with its response."""
        return [len(opening) + len(reply) for opening, reply in self._tokens(prompts, responses)]

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[answer, width]`` pooled states.

        Raises:
            ScorerError: a text is longer than ``max_length``.
        """
        import torch

        tokens = self._tokens(prompts, responses)
        name, longest = Path(self.settings.model).name, positions(self._model.config) or UNLIMITED
        reading = Reading(f"fitted({name})", self._model.device, BATCH_SIZE, min(self.settings.max_length, longest))

        def pooled(ids: Tensor, mask: Tensor, indices: Sequence[int]) -> Tensor:
            rows = []
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            for states, index in zip(hidden, indices, strict=True):
                # A response without any token is read at the prompt's end.
                reply = states[min(len(tokens[index][0]), len(states) - 1) :].double()
                parts = {"mean": [reply.mean(0)], "last": [reply[-1]], "both": [reply.mean(0), reply[-1]]}
                rows.append(torch.cat(parts[self.settings.pooling]))
            return torch.stack(rows)

        return reading([opening + reply for opening, reply in tokens], pooled)

    def _tokens(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        end = self._tokenizer.eos_token_id
        tail = [] if end is None else [end]
        return [
            (self._template(prompt), [*text_tokens(self._tokenizer, response), *tail])
            for prompt, response in zip(prompts, responses, strict=True)
        ]


class RememberedStates:
    """A reader that knows the states of some answers, and reads those of others."""

    def __init__(self, reader: StateReader, prompts: Sequence[Prompt], responses: Sequence[str]) -> None:
        """Read the states of these answers, or take them from the user's cache."""
        self.settings, self.identity = reader.settings, reader.identity
        self._reader = reader
        states = cached_states(reader, prompts, responses)
        self._known = dict(zip(_keys(prompts, responses), states, strict=True))

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[answer, width]`` pooled states."""
        keys = _keys(prompts, responses)
        new = [index for index, key in enumerate(keys) if key not in self._known]
        read = self._reader([prompts[i] for i in new], [responses[i] for i in new])
        found = dict(zip(new, read, strict=True))
        return np.array([found.get(index, self._known.get(key)) for index, key in enumerate(keys)])


def located(model: str, folder: Path) -> str:
    """Return a model's name as it is kept beside a head: a local one by its full path, from ``folder``."""
    here = folder / model
    return str(here.resolve()) if here.exists() else model


def config_of(model: str) -> Any:
    """Return the config of a model.

    Raises:
        MissingError: there is no such model, or its config cannot be read.
    """
    from transformers import AutoConfig

    place = resolve(model)
    with readable(f"model {place}"):
        return AutoConfig.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)


def keep_layers(model: Any, layers: int | None) -> None:
    """Drop the layers of ``model`` above the first ``layers``, in place; none: keep all.

    Raises:
        ConfigError: the model has fewer, or does not keep its layers in one list.
    """
    from torch import nn

    if layers is None:
        return
    total = model.config.get_text_config().num_hidden_layers
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == total]
    if len(stacks) != 1:
        raise ConfigError("scorer fitted: this model's layers are not one list; leave 'layer' out")
    if layers > total:
        raise ConfigError(f"scorer fitted: layer {layers}; the model has {total}")
    del stacks[0][layers:]


def cached_states(reader: StateReader, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
    """Return what ``reader`` gives, from the user's cache where the very same was computed before."""
    from safetensors import SafetensorError
    from safetensors.numpy import load, save

    texts = [
        [[[turn.role, turn.text] for turn in prompt.history], prompt.text, response]
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    facts = {**asdict(reader.settings), "model": reader.identity, "texts": texts}
    path = default_cache() / "states" / f"{canonical_digest(facts)}.safetensors"
    if path.is_file():
        try:
            return np.asarray(load(path.read_bytes())["states"], dtype=np.float64)
        except (SafetensorError, KeyError) as error:
            raise DataError(f"{path}: a damaged cache file ({error}); delete it") from error
    states = reader(prompts, responses)
    # Pooled states have some three digits that matter; half of the disk is enough.
    write_bytes(path, save({"states": states.astype(np.float32)}))
    return states.astype(np.float32).astype(np.float64)


def _keys(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[tuple[str, str]]:
    return [(prompt.id, response) for prompt, response in zip(prompts, responses, strict=True)]


@dataclass(frozen=True)
class StateFeatures:
    """Standardised states: (state - mean) / deviation / sqrt(width), so that an answer has length 1 on average."""

    reader: StateReader | RememberedStates
    mean: FloatArray
    """Shape ``[width]``."""
    deviation: FloatArray

    @classmethod
    def of(cls, reader: StateReader | RememberedStates, states: FloatArray) -> Self:
        """Return the features that standardise ``states``, shape ``[answer, width]``; no label is read."""
        deviation = states.std(axis=0)
        # A column that never moves says nothing, and must not be blown up where it does move.
        return cls(reader, states.mean(axis=0), np.where(deviation > 0, deviation, np.inf))

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return the ``[answer, width]`` features."""
        return self.standardised(self.reader(prompts, responses))

    def standardised(self, states: FloatArray) -> FloatArray:
        """Return the features of states that were read before."""
        return np.asarray((states - self.mean) / (self.deviation * np.sqrt(len(self.mean))), dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        """Return all but the arrays."""
        return {"settings": asdict(self.reader.settings), "identity": self.reader.identity}

    def tensors(self) -> dict[str, FloatArray]:
        """Return the arrays."""
        return {"mean": self.mean, "deviation": self.deviation}

    @classmethod
    def load(cls, head: Mapping[str, Any], tensors: Mapping[str, FloatArray]) -> Self:
        """Return the features that ``to_json`` and ``tensors`` told of.

        Raises:
            DataError: the model at that place is another one by now.
        """
        reader = StateReader(StateSettings(**head["settings"]))
        if reader.identity != head["identity"]:
            raise DataError(
                f"scorer fitted: the model {reader.settings.model!r} is not the one that the head was fitted on "
                f"({reader.identity} instead of {head['identity']})"
            )
        return cls(reader, tensors["mean"], tensors["deviation"])
