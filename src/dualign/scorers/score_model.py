"""``kind: score-checkpoint``: the end score of a reward or cost model in the layouts of Safe RLHF (Dai et al. 2023).

How such a model is read and written, whether its tokenizer is its own (a wrong one gives numbers without any sign that
they are wrong), and the scorer that it is.
"""

from __future__ import annotations

import copy
import inspect
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dualign.errors import ConfigError, DataError, MissingError, UsageError
from dualign.models.templates import make_transcript
from dualign.models.tensors import HARMLESS, check_finite, check_shapes, check_tensors, quietly, readable
from dualign.protocols import Direction
from dualign.scorers.encoding import Reading, ReadingSpec, fitting_length, load_tokenizer
from dualign.scorers.spec import FunctionScorer, Setting, existing, folder_revision, revision_of, tokenizer_revision

if TYPE_CHECKING:
    from torch import Tensor


_SPARE_ROWS = 0.05
"""Share of embedding rows that may belong to no token: vocabularies are padded to round sizes (at most about 2.5 % in
published models), and a tokenizer that leaves more rows unused is another model's."""


def check_tokenizer(tokenizer: Any, backbone: Any, where: str) -> None:
    """Check that a tokenizer can be that of ``backbone``: its ids fit the embedding, and they agree on the end token.

    Raises:
        DataError: they do not.
    """
    rows = backbone.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise DataError(f"score checkpoint {where}: its tokenizer has ids up to {largest}, the model only {rows} rows")
    if rows - 1 - largest > _SPARE_ROWS * rows:
        raise DataError(
            f"score checkpoint {where}: its tokenizer has ids up to {largest} for a model of {rows} rows; "
            "it is another model's"
        )


HEAD_WEIGHT, HEAD_BIAS = "score_head.weight", "score_head.bias"
MEAN, VARIANCE, COUNT = "normalizer.mean", "normalizer.var", "normalizer.count"
SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
BUFFERS = (MEAN, VARIANCE, COUNT)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder by name: from safetensors where there are any, else from ``.bin`` files.

    A ``.bin`` file is read as plain weights; one that holds any other object is refused, and nothing in it is run.

    Raises:
        MissingError: the folder has no weights, or a file that its index names is not there.
        DataError: a file is damaged or is not plain weights, or two files hold the same name.
    """
    safe, pickled = _files(folder, SAFETENSORS), _files(folder, PICKLED)
    if not safe and not pickled:
        raise MissingError(f"score checkpoint {folder}: has neither model*.safetensors nor pytorch_model*.bin")
    tensors: dict[str, Tensor] = {}
    for path in safe or pickled:
        found = _read_safe(path) if safe else _read_bin(path)
        if twice := tensors.keys() & found.keys():
            raise DataError(f"score checkpoint {path}: {min(twice)!r} stands in another file too")
        tensors |= found
    return tensors


def sort_tensors(
    tensors: Mapping[str, Tensor], empty: Any, *, where: str, biased: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of the backbone by its own names, and those of head and normaliser by the checkpoint's.

    Rotary frequencies and a language model's head are left out; a normaliser's buffers come together or not at all.

    Args:
        tensors: all tensors by the checkpoint's names.
        empty: the backbone; only its tensors' names and shapes are read.
        where: names the checkpoint in messages.
        biased: whether the head has a bias by the checkpoint's own word; without it, one that is there is read too.

    Raises:
        MissingError: a tensor is missing, unknown or of another shape.
    """
    ignored = [HARMLESS, r"^lm_head\.", *(empty._keys_to_ignore_on_load_unexpected or ())]
    body = {f"{empty.base_model_prefix}.{name}": tensor for name, tensor in empty.state_dict().items()}
    # The patterns are loose ("attn.bias"), so that they speak only of what the model has no place for.
    kept = {n: tensor for n, tensor in tensors.items() if n in body or not any(re.search(p, n) for p in ignored)}
    own = {name: kept.pop(name) for name in (HEAD_WEIGHT, HEAD_BIAS, *BUFFERS) if name in kept}
    needed = {HEAD_WEIGHT, *([HEAD_BIAS] if biased else []), *(BUFFERS if own.keys() & set(BUFFERS) else [])}
    check_tensors(where, missing=needed - own.keys())
    check_shapes(where, needed=body, found=kept)
    check_finite(where, own)
    return {name: kept[f"{empty.base_model_prefix}.{name}"] for name in empty.state_dict()}, own


def _files(folder: Path, single: str) -> list[Path]:
    """Return the files that the index of ``single`` names; without an index, all that are called like it."""
    index = folder / f"{single}.index.json"
    if not index.is_file():
        return sorted(folder.glob(single.replace(".", "*.")))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [folder / name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"score checkpoint {index}: is no index of weight files ({error!r})") from error
    for path in paths:
        if path.parent != folder:
            raise DataError(f"score checkpoint {index}: names {str(path)!r}, which is not in the folder")
        if not path.is_file():
            raise MissingError(f"score checkpoint {path}: named by {index.name} and not there")
    return paths


def _read_safe(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise DataError(f"score checkpoint {path}: cannot be read ({error})") from error
    return tensors


def _read_bin(path: Path) -> dict[str, Tensor]:
    from pickle import UnpicklingError

    import torch

    # What the reader of plain weights raises on bytes that are none depends on where they first make no sense.
    senseless = (UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError)
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (*senseless, struct.error, OSError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise DataError(f"score checkpoint {path}: is not plain weights and was not loaded ({reason})") from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in found.items()
    ):
        raise DataError(f"score checkpoint {path}: expected tensors by name, found {type(found).__name__}")
    return dict(found)


_EPSILON = 1e-8


@dataclass(frozen=True, slots=True)
class Normaliser:
    """Mean and variance of raw scores, shape ``[score]`` each."""

    mean: Tensor
    variance: Tensor

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

    where = f"score checkpoint {folder}"
    config, device = _read_config(folder), "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device("meta"):
        empty = AutoModel.from_config(config, trust_remote_code=False)
    body, own = sort_tensors(
        read_tensors(folder), empty, where=where, biased=getattr(config, "score_bias", False) is True
    )
    # The output of some OPT models is narrower than their hidden states.
    hidden = getattr(config, "word_embed_proj_dim", config.get_text_config().hidden_size)
    size = getattr(config, "score_dim", len(own[HEAD_WEIGHT]))
    shapes = {HEAD_WEIGHT: (size, hidden)} | dict.fromkeys((HEAD_BIAS, MEAN, VARIANCE), (size,))
    found = [(name, tuple(own[name].shape), shape) for name, shape in shapes.items() if name in own]
    check_tensors(where, mismatched=[row for row in found if row[1] != row[2]])
    # Given with its tensors, the class fills itself and recomputes the buffers that no checkpoint keeps.
    with quietly():
        backbone = type(empty).from_pretrained(None, config=config, state_dict=body, dtype=getattr(torch, dtype))
    normaliser = None
    if getattr(config, "do_normalize", False):
        mean = _statistic(own.get(MEAN), "mean", config, where).to(device)
        normaliser = Normaliser(mean, _statistic(own.get(VARIANCE), "var", config, where).to(device))
    bias = own.get(HEAD_BIAS, torch.zeros(len(own[HEAD_WEIGHT])))
    head, bias = (value.float().to(device) for value in (own[HEAD_WEIGHT], bias))
    return ScoreModel(backbone.eval().to(device), head, bias, normaliser)


def save_score_model(folder: Path, backbone: Any, head_weight: Tensor, head_bias: Tensor, tokenizer: Any) -> None:
    """Write a score model of raw scores and its tokenizer into ``folder``, in the later layout of Safe RLHF.

    Reward or cost is not written: it is the caller's to say when the model is loaded.

    Args:
        folder: made where it is missing; files in it are replaced.
        backbone: a model of transformers, with or without a language-model head (which is left out).
        head_weight: ``[score, hidden]``.
        head_bias: ``[score]``.
        tokenizer: of the backbone; its end token is the one that scores are read at.

    Raises:
        DataError: the tokenizer is not that of the backbone.
    """
    import torch
    from safetensors.torch import save_file

    base = backbone.base_model
    check_tokenizer(tokenizer, base, str(folder))
    size = len(head_weight)
    tensors = {f"{base.base_model_prefix}.{name}": tensor for name, tensor in base.state_dict().items()}
    tensors |= {HEAD_WEIGHT: head_weight, HEAD_BIAS: head_bias}
    tensors |= {MEAN: torch.zeros(size), VARIANCE: torch.ones(size), COUNT: torch.tensor([0])}
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, folder / SAFETENSORS, metadata={"format": "pt"})
    config = copy.deepcopy(base.config)
    config.update(
        {
            "architectures": [type(base).__name__.removesuffix("Model") + "ForScore"],
            "score_dim": size,
            "score_bias": True,
            "do_normalize": False,
            "normalizer_type": None,
            "mean": [0.0] * size,
            "var": [1.0] * size,
        }
    )
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise MissingError(f"score checkpoint {folder}: has no config.json")
    try:
        with readable(f"score checkpoint {folder}", "config.json cannot be used"):
            return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except MissingError as error:
        raise DataError(str(error)) from error


def _statistic(buffer: Tensor | None, key: str, config: Any, where: str) -> Tensor:
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
        check_tensors(f"{where} (do_normalize)", missing=[f"normalizer.{key}"])
    if not isinstance(stated, list) or len(stated) != size:
        raise DataError(f"{where}: {key!r} in config.json is {stated!r}, expected {size} numbers")
    return torch.tensor(stated, dtype=torch.float32)


class ScoreCheckpointSpec(ReadingSpec):
    """Keys of ``kind: score-checkpoint``; whether it is a reward or a cost is told by where it is used."""

    model: str
    """Local folder with config, weights and tokenizer."""
    template: Literal["beaver", "chat", "plain"] = "beaver"
    """What the model was trained with; another template gives other scores."""
    append_eos: bool = True
    """Whether an end token follows the response, as in training; some model cards show scores without."""
    batch_size: int = Field(default=8, ge=1)


def build(spec: ScoreCheckpointSpec, setting: Setting) -> FunctionScorer:
    """Return the score that a reward or cost model gives at the end of prompt and response.

    Raises:
        ConfigError: the template does not go with the tokenizer, or the model gives several scores.
        MissingError: the folder, or the weights in it, are not there.
        DataError: the checkpoint is damaged, of another architecture, or its tokenizer is another model's.
    """
    folder = existing(setting.folder, spec.model, "scorer score-checkpoint: model")
    tokenizer, direction = load_tokenizer(spec.model, setting.folder), setting.direction
    try:
        transcript = make_transcript(spec.template, tokenizer, append_eos=spec.append_eos)
    except UsageError as error:
        raise ConfigError(f"scorer score-checkpoint: {error}") from error
    model = load_score_model(folder, dtype=spec.dtype)
    check_tokenizer(tokenizer, model.backbone, str(folder))
    longest = fitting_length(spec, model.backbone, tokenizer, f"scorer score-checkpoint ({spec.model})")
    if spec.append_eos:
        named, end = model.backbone.config.eos_token_id, tokenizer.eos_token_id
        # Scores would be read at a token that the head was not trained on.
        if named is not None and end not in (named if isinstance(named, list) else [named]):
            raise DataError(f"score checkpoint {folder}: its tokenizer ends with token {end}, its config says {named}")
    name, size = f"score-checkpoint({Path(spec.model).name})", len(model.head_weight)
    if size != 1:
        raise ConfigError(f"scorer {name}: the model gives {size} scores a text; one is needed")
    revision = revision_of(
        kind="score-checkpoint",
        weights=folder_revision(folder),
        tokenizer=tokenizer_revision(tokenizer),
        direction=direction,
        **spec.model_dump(include={"template", "append_eos", "dtype"}),
    )
    reading = Reading(name, model.head_weight.device, spec.batch_size, longest)
    scores = reading.of(transcript, lambda ids, mask, _: model.end_scores(ids, mask, direction)[:, 0])
    return FunctionScorer(name, direction, revision, scores)
