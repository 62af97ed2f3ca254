"""Loading Hugging Face scorer models, and batches in which a text gets the score that it gets alone.

Loads with the weights-only formats alone (safetensors) and never runs code from a model's folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.errors import MissingError, ScorerError
from dualign.scorers.spec import folder_revision

if TYPE_CHECKING:
    from torch import Tensor


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

    return _load(AutoTokenizer.from_pretrained, name, folder, revision)


def load_model(auto: Any, name: str, folder: Path, *, revision: str | None, dtype: str) -> Any:
    """Return the model of a folder or id in evaluation mode, on the GPU where there is one.

    Args:
        auto: the class of transformers that chooses the architecture.
        name: folder or id.
        folder: where relative paths start.
        revision: branch, tag or commit of an id.
        dtype: ``float32`` or ``bfloat16``.

    Raises:
        MissingError: there is none, or it has no safetensors weights.
    """
    import torch

    from dualign.engine.loading import without_bars

    with without_bars():
        model = _load(auto.from_pretrained, name, folder, revision, dtype=getattr(torch, dtype), use_safetensors=True)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def model_revision(model: Any) -> str:
    """Return a hash of a local model's files, or the commit of one from the hub."""
    folder = Path(model.config.name_or_path)
    return folder_revision(folder) if folder.is_dir() else str(getattr(model.config, "_commit_hash", None))


def _load(load: Any, name: str, folder: Path, revision: str | None, **settings: Any) -> Any:
    located = locate(name, folder)
    try:
        return load(located, revision=revision, trust_remote_code=False, **settings)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MissingError(f"scorer model {located!r}: cannot be loaded ({reason})") from error


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
