"""Loading Hugging Face scorer models, and batches in which a text gets the score that it gets alone.

Loads with the weights-only formats alone (safetensors) and never runs code from a model's folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from dualign.errors import ConfigError, MissingError, ScorerError, UsageError
from dualign.models.tensors import (
    HEADS,
    check_vocabulary,
    embedding_rows,
    positions,
    quietly,
    read_model,
    readable,
    usable_length,
)
from dualign.protocols import Direction
from dualign.records import FloatArray, Prompt
from dualign.scorers.rules import tokenizer_revision
from dualign.scorers.spec import ScorerSpec, Setting, folder_revision, revision_of

if TYPE_CHECKING:
    from torch import Tensor


ADAPTER = "_dualign_adapter"
"""Attribute of a model that an adapter was merged into: the adapter's folder."""


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
    """Return the tokenizer of a folder or id.

    Raises:
        MissingError: there is none.
    """
    from transformers import AutoTokenizer

    from dualign.scorers.adapted import tokenizer_place

    located = locate(name, folder)
    with readable(f"scorer model {located!r}", "cannot be loaded"):
        place, revision = tokenizer_place(located, folder, revision)
        return AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)


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

    from dualign.scorers.adapted import adapter_folder, load_adapted

    located = locate(name, folder)
    with readable(f"scorer model {located!r}", "cannot be loaded"), quietly():
        adapter = adapter_folder(located, revision)
        if adapter is None:
            model = load_whole(auto, located, revision=revision, dtype=dtype, spare=spare)
        else:
            model = load_adapted(auto, adapter, folder, dtype=dtype, spare=spare)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def load_whole(auto: Any, located: str, *, revision: str | None, dtype: str, **checks: Any) -> Any:
    """Return the model of a folder or id, every tensor from its files; ``checks`` are those of ``read_model``."""
    import torch

    return read_model(
        auto,
        located,
        f"scorer model {located!r}",
        revision=revision,
        trust_remote_code=False,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        **checks,
    )


def fitting_length(spec: ScorerSpec, model: Any, tokenizer: Any, where: str) -> int:
    """Return the longest text that is scored: ``max_length`` of ``spec``, a default one as far as the model goes.

    Raises:
        ConfigError: the spec states more than the model can hold.
        MissingError: a token has no row of the model's embedding.
    """
    check_vocabulary(tokenizer, embedding_rows(model), where)
    return _length(spec, model.config, where)


def check_length(values: Mapping[str, Any], folder: Path, where: str) -> None:
    """Check ``max_length`` of a scorer against its model's config, where that is on this machine; nothing is loaded.

    Raises:
        ConfigError: more is stated than the model can hold.
        MissingError: there is no such model, or its config cannot be read.
    """
    from transformers import AutoConfig

    from dualign.scorers.adapted import base_place
    from dualign.scorers.table import KINDS

    spec: Any = KINDS[values["kind"]].spec.model_validate({k: v for k, v in values.items() if k != "kind"})
    if not {"model", "max_length"} <= type(spec).model_fields.keys():
        return
    located = locate(spec.model, folder)
    place = base_place(Path(located), folder) if Path(located).is_dir() else located
    if (Path(place) / "config.json").is_file():
        with readable(f"scorer model {located!r}", "cannot be loaded"):
            _length(spec, AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False), where)


def _length(spec: Any, config: Any, where: str) -> int:
    stated = "max_length" in spec.model_fields_set
    try:
        return usable_length(spec.max_length, positions(config), stated=stated, what=f"{where}: max_length")
    except UsageError as error:
        raise ConfigError(str(error)) from None


def model_revision(model: Any) -> str:
    """Return a hash of a local model's files, or the commit of one from the hub; of an adapter and its base both."""
    folder = Path(model.config.name_or_path)
    own = folder_revision(folder) if folder.is_dir() else str(getattr(model.config, "_commit_hash", None))
    adapter = getattr(model, ADAPTER, None)
    return own if adapter is None else f"{own}+{folder_revision(adapter)}"


def even_batches(
    sequences: Sequence[Sequence[int]], batch_size: int, device: Any
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield (indices, ids, mask) of sequences of one and the same length, so that there is no padding.

    A text thus gets the number that it gets alone: with padding, attention adds up in another order, which in
    bfloat16 moves a state by up to a hundredth.
    """
    lengths: dict[int, list[int]] = {}
    for index, tokens in enumerate(sequences):
        lengths.setdefault(len(tokens), []).append(index)
    for _, alike in sorted(lengths.items()):
        for start in range(0, len(alike), batch_size):
            yield _padded(sequences, alike[start : start + batch_size], device)


def padded_batch(sequences: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Return (ids, mask) of all sequences, padded on the right.

    Padding is always on the right, whatever side the tokenizer prefers: positions then count from the first
    token in every batch. The padding id is one that does not occur in the batch, so that a model which looks
    for the last token that is not padding finds the end token even where padding and end share an id.
    """
    return _padded(sequences, range(len(sequences)), device)[1:]


def _padded(
    sequences: Sequence[Sequence[int]], indices: Sequence[int], device: Any
) -> tuple[list[int], Tensor, Tensor]:
    import torch

    longest = max(len(sequences[index]) for index in indices)
    pad = absent_id([sequences[index] for index in indices])
    ids = torch.full((len(indices), longest), pad, dtype=torch.long)
    mask = torch.zeros((len(indices), longest), dtype=torch.long)
    for row, index in enumerate(indices):
        tokens = sequences[index]
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        mask[row, : len(tokens)] = 1
    return list(indices), ids.to(device), mask.to(device)


def absent_id(sequences: Sequence[Sequence[int]]) -> int:
    """Return the least token id that occurs in none of the sequences."""
    present = {token for sequence in sequences for token in sequence}
    return next(candidate for candidate in range(len(present) + 1) if candidate not in present)


def check_lengths(sequences: Sequence[Sequence[int]], max_length: int, scorer: str) -> None:
    """Check that every sequence has tokens, and at most ``max_length``: a cut text would get another's score.

    Raises:
        ScorerError: one is empty or too long; its index is named.
    """
    for index, tokens in enumerate(sequences):
        if len(tokens) > max_length:
            raise ScorerError(
                f"scorer {scorer}: prompt {index} needs {len(tokens)} tokens, max_length is {max_length}; "
                f"raise it, or shorten the prompts"
            )
        if not tokens:
            raise ScorerError(f"scorer {scorer}: prompt {index} has no tokens")


class EmbeddingRelevanceSpec(ScorerSpec):
    """Keys of ``kind: embedding-relevance``."""

    model: str
    """Folder or id of an encoder (or of a language model: its last hidden states are averaged just so)."""
    revision: str | None = None
    """Branch, tag or commit of an id."""
    batch_size: int = Field(default=32, ge=1)
    """Changes speed alone: texts of one length are read together, without padding."""
    max_length: int = Field(default=512, ge=1)
    """Longer texts are an error."""
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class EmbeddingRelevanceScorer:
    """cos(mean hidden state of the prompt, mean hidden state of the response), in [-1, 1]."""

    model: Any
    tokenizer: Any
    direction: Direction
    batch_size: int = 32
    max_length: int = 512
    name: str = "model"

    @property
    def id(self) -> str:
        """Return the kind and the model's name."""
        return f"embedding-relevance({self.name})"

    @property
    def revision(self) -> str:
        """Return a hash of the model and its tokenizer."""
        return revision_of(
            kind="embedding-relevance",
            model=model_revision(self.model),
            dtype=str(self.model.dtype),
            tokenizer=tokenizer_revision(self.tokenizer),
        )

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[response]`` cosines; 0 for a response without any text.

        Raises:
            ScorerError: a text is longer than ``max_length``.
        """
        distinct = list(dict.fromkeys([*(prompt.text for prompt in prompts), *responses]))
        filled = [text for text in distinct if text.strip()]
        vectors = dict(zip(filled, self._embed(filled), strict=True))
        return np.array(
            [
                float(vectors[prompt.text] @ vectors[response]) if response in vectors else 0.0
                for prompt, response in zip(prompts, responses, strict=True)
            ]
        )

    def _embed(self, texts: Sequence[str]) -> list[FloatArray]:
        """Return the unit vector of each text, of shape ``[hidden]``."""
        import torch

        sequences = [list(self.tokenizer(text)["input_ids"]) for text in texts]
        check_lengths(sequences, self.max_length, self.id)
        vectors: list[FloatArray] = [np.empty(0)] * len(texts)
        with torch.no_grad():
            for indices, ids, mask in even_batches(sequences, self.batch_size, self.model.device):
                hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.double()
                weight = mask.unsqueeze(-1).double()
                mean = (hidden * weight).sum(1) / weight.sum(1)
                unit = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
                for row, index in enumerate(indices):
                    vectors[index] = unit[row]
        return vectors


def build(spec: EmbeddingRelevanceSpec, setting: Setting) -> EmbeddingRelevanceScorer:
    """Return the scorer that ``spec`` describes."""
    from transformers import AutoModel

    load: dict[str, Any] = {"name": spec.model, "folder": setting.folder, "revision": spec.revision}
    model, tokenizer = load_model(AutoModel, dtype=spec.dtype, **load), load_tokenizer(**load)
    return EmbeddingRelevanceScorer(
        model=model,
        tokenizer=tokenizer,
        direction=setting.direction,
        batch_size=spec.batch_size,
        max_length=fitting_length(spec, model, tokenizer, f"scorer embedding-relevance ({spec.model})"),
        name=Path(spec.model).name,
    )
