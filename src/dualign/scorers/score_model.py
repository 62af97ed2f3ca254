"""A score model: a backbone without its language-model head, a linear head, a normaliser (Dai et al. 2023, Safe RLHF).

The score of a text is that of its last token. ``load_score_model`` reads both published layouts of such checkpoints,
``save_score_model`` writes the later one.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.engine.tensors import check_tensors
from dualign.errors import DataError, MissingError
from dualign.scorers.protocol import Direction
from dualign.scorers.score_tokenizer import check_tokenizer
from dualign.scorers.score_weights import (
    COUNT,
    HEAD_BIAS,
    HEAD_WEIGHT,
    MEAN,
    SAFETENSORS,
    VARIANCE,
    ScoreWeights,
    read_tensors,
    sort_tensors,
)

if TYPE_CHECKING:
    from torch import Tensor

_EPSILON = 1e-8


@dataclass(frozen=True, slots=True)
class Normaliser:
    """Mean and variance of raw scores, shape ``[score]`` each, and how many scores they were taken over."""

    mean: Tensor
    variance: Tensor
    count: int = 0

    def __call__(self, scores: Tensor, direction: Direction) -> Tensor:
        """Return normalised ``[row, score]`` scores; a cost is only scaled, which keeps its zero."""
        centred = scores - self.mean if direction == "reward" else scores
        return centred / (self.variance.sqrt() + _EPSILON)


@dataclass(frozen=True)
class ScoreModel:
    """Backbone, head and normaliser in memory, in evaluation mode."""

    backbone: Any
    head_weight: Tensor
    """Shape ``[score, hidden]``, float32."""
    head_bias: Tensor
    """Shape ``[score]``, float32; zeros in the early layout."""
    normaliser: Normaliser | None
    """None: scores are raw."""

    def end_scores(self, ids: Tensor, mask: Tensor, direction: Direction) -> Tensor:
        """Return ``[row, score]`` float64 scores of each row's last token with mask 1; padding may be on any side.

        Args:
            ids: ``[row, token]`` token ids.
            mask: ``[row, token]``, 1 where a token is real.
            direction: what the scores are used as, for the normaliser.
        """
        import torch

        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
        more = {}
        if "position_ids" in inspect.signature(self.backbone.forward).parameters:
            # Counted from the first real token: a row padded on the left has the same positions as one alone.
            more["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        hidden = self.backbone(input_ids=ids, attention_mask=mask, use_cache=False, **more).last_hidden_state
        # One short product a row: in float64 it costs nothing, and rounds nothing that the backbone has not.
        end = hidden[torch.arange(len(ids), device=ids.device), last].double()
        scores = torch.nn.functional.linear(end, self.head_weight.double(), self.head_bias.double())
        return scores if self.normaliser is None else self.normaliser(scores, direction)


def load_score_model(folder: Path, *, dtype: str = "float32") -> ScoreModel:
    """Return the score model of a local folder, on the GPU where there is one; no code of the folder is run.

    Bias and normaliser are there when their tensors are; the bias has to be where the config says ``score_bias``, and
    is zero in the early layout. Scores are normalised only where the config says ``do_normalize``; a normaliser without
    tensors then has the mean and variance of the config.

    Raises:
        MissingError: the folder has no config or no weights, or a tensor is missing, unknown or of another shape.
        DataError: config or weights are damaged.
    """
    import torch
    from transformers import AutoModel

    from dualign.engine.loading import without_bars

    config = _read_config(folder)
    with torch.device("meta"):
        empty = AutoModel.from_config(config, trust_remote_code=False)
    prefix = f"{empty.base_model_prefix}."
    weights = sort_tensors(
        read_tensors(folder),
        prefix=prefix,
        expected=empty.state_dict(),
        where=str(folder),
        biased=getattr(config, "score_bias", False) is True,
        harmless=empty._keys_to_ignore_on_load_unexpected or (),
    )
    _check_head(weights, config, folder)
    # Given with its tensors, the class fills itself and recomputes the buffers that no checkpoint keeps.
    with without_bars():
        backbone = type(empty).from_pretrained(
            None, config=config, state_dict=dict(weights.backbone), dtype=getattr(torch, dtype)
        )
    return _assembled(backbone.eval(), weights, config, folder)


def save_score_model(
    folder: str | Path,
    backbone: Any,
    head_weight: Tensor,
    head_bias: Tensor,
    tokenizer: Any,
    *,
    normaliser: Normaliser | None = None,
) -> None:
    """Write a score model and its tokenizer into ``folder``, in the later layout of Safe RLHF.

    Reward or cost is not written: it is the caller's to say when the model is loaded.

    Args:
        folder: made where it is missing; files in it are replaced.
        backbone: a model of transformers, with or without a language-model head (which is left out).
        head_weight: ``[score, hidden]``.
        head_bias: ``[score]``.
        tokenizer: of the backbone; its end token is the one that scores are read at.
        normaliser: of the raw scores; none: scores are raw.

    Raises:
        DataError: the tokenizer is not that of the backbone.
    """
    import torch
    from safetensors.torch import save_file

    folder = Path(folder)
    base = backbone.base_model
    check_tokenizer(tokenizer, base, str(folder))
    size = len(head_weight)
    kept = normaliser or Normaliser(torch.zeros(size), torch.ones(size))
    tensors = {f"{base.base_model_prefix}.{name}": tensor for name, tensor in base.state_dict().items()}
    tensors |= {HEAD_WEIGHT: head_weight, HEAD_BIAS: head_bias}
    tensors |= {MEAN: kept.mean, VARIANCE: kept.variance, COUNT: torch.tensor([kept.count])}
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, folder / SAFETENSORS, metadata={"format": "pt"})
    config = copy.deepcopy(base.config)
    config.update(_head_config(base, kept, normaliser is not None))
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _assembled(backbone: Any, weights: ScoreWeights, config: Any, folder: Path) -> ScoreModel:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    bias = torch.zeros(len(weights.head_weight)) if weights.head_bias is None else weights.head_bias
    normaliser = None
    if getattr(config, "do_normalize", False):
        mean = _statistic(weights.mean, "mean", config, folder)
        variance = _statistic(weights.variance, "var", config, folder)
        normaliser = Normaliser(mean.to(device), variance.to(device))
    head = weights.head_weight.float().to(device)
    return ScoreModel(backbone.to(device), head, bias.float().to(device), normaliser)


def _head_config(base: Any, normaliser: Normaliser, normalise: bool) -> dict[str, Any]:
    return {
        "architectures": [type(base).__name__.removesuffix("Model") + "ForScore"],
        "score_dim": len(normaliser.mean),
        "score_bias": True,
        "do_normalize": normalise,
        "normalizer_type": "RunningMeanStd" if normalise else None,
        "mean": normaliser.mean.tolist(),
        "var": normaliser.variance.tolist(),
    }


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    from dualign.engine.loading import readable

    if not (folder / "config.json").is_file():
        raise MissingError(f"score checkpoint {folder}: has no config.json")
    try:
        with readable(f"score checkpoint {folder}", "config.json cannot be used"):
            return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except MissingError as error:
        raise DataError(str(error)) from error


def _check_head(weights: ScoreWeights, config: Any, folder: Path) -> None:
    # The output of some OPT models is narrower than their hidden states.
    hidden = getattr(config, "word_embed_proj_dim", config.get_text_config().hidden_size)
    size = getattr(config, "score_dim", len(weights.head_weight))
    parts = {HEAD_WEIGHT: (weights.head_weight, (size, hidden)), HEAD_BIAS: (weights.head_bias, (size,))}
    parts |= {MEAN: (weights.mean, (size,)), VARIANCE: (weights.variance, (size,))}
    shapes = [(name, tuple(t.shape), shape) for name, (t, shape) in parts.items() if t is not None]
    check_tensors(f"score checkpoint {folder}", mismatched=[row for row in shapes if row[1] != row[2]])


def _statistic(buffer: Tensor | None, key: str, config: Any, folder: Path) -> Tensor:
    """Return a normaliser's buffer; a missing one comes from the config.

    Raises:
        MissingError: the config does not state it either.
        DataError: the config states something else than so many numbers.
    """
    import torch

    if buffer is not None:
        return buffer.float()
    size = getattr(config, "score_dim", 1)
    stated = getattr(config, key, None)
    if stated is None:
        check_tensors(f"score checkpoint {folder} (do_normalize)", missing=[f"normalizer.{key}"])
    if not isinstance(stated, list) or len(stated) != size:
        raise DataError(f"score checkpoint {folder}: {key!r} in config.json is {stated!r}, expected {size} numbers")
    return torch.tensor(stated, dtype=torch.float32)
