"""Loading Hugging Face scorer models, and batches in which a text gets the score that it gets alone.

Loads with the weights-only formats alone (safetensors) and never runs code from a model's folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.engine.limits import check_vocabulary, embedding_rows, positions, usable_length
from dualign.engine.loading import readable, without_bars
from dualign.engine.tensors import HEADS, read_model
from dualign.errors import ConfigError, MissingError, ScorerError, UsageError
from dualign.scorers.spec import ScorerSpec, folder_revision

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
    with readable(f"scorer model {located!r}", "cannot be loaded"), without_bars():
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
