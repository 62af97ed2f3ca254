"""No tensor is made up: what a checkpoint holds is compared with what its model needs, by one function for all loaders.

transformers and PEFT draw a tensor that they do not find, and tell of it in a log. A score or a probability then means
nothing, and another one at every start.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from dualign.errors import MissingError, inert
from dualign.errors import MissingError, UsageError


Shape = tuple[int, ...]
Mismatch = tuple[str, Shape, Shape]
"""Name, shape in the file, shape in the model."""

SHOWN = 3
"""Tensors that a message names, of all kinds of fault together; of the others it gives the number."""
HARMLESS = r"(^|\.)(inv_freq|position_ids|masked_bias)$"
"""Buffers of old checkpoints, which a model computes anew."""
WRAPPED = "base_model.model."
"""What PEFT puts before every name of a model that is saved without being merged."""
HEADS = (
    "lm_head", "embed_out", "cls", "score", "score_head", "classifier", "qa_outputs", "pooler", "predictions",
    "vocab_transform", "vocab_layer_norm", "vocab_projector", "lm_predictions", "mask_predictions",
    "generator_predictions", "generator_lm_head", "discriminator_predictions", "pre_classifier", "v_head",
    "head", "decoder.weight", "decoder.bias", "classification_head", "logits_proj", "sequence_summary", "lm_loss",
)  # fmt: skip
"""First parts of the names of heads, or whole names, by which the same body serves another task."""


def check_tensors(
    where: str,
    *,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    mismatched: Iterable[Mismatch] = (),
) -> None:
    """Return when nothing is missing, unexpected or of another shape.

    Args:
        where: whose tensors they are, such as ``model ./folder``.
        missing: names that the model needs and the files do not hold.
        unexpected: names that the files hold and the model has not.
        mismatched: names that both have, with two shapes.

    Raises:
        MissingError: some are; a few are named, with their number.
    """
    strange = sorted(unexpected)
    shapes = [f"{name} {list(own)} (needs {list(needed)})" for name, own, needed in sorted(mismatched)]
    faults = {"missing": sorted(missing), "not part of this model": strange, "of another shape": shapes}
    faults = {what: names for what, names in faults.items() if names}
    if not faults:
        return
    told = "; ".join(_fault(what, names, SHOWN // len(faults)) for what, names in faults.items())
    wrapped = bool(strange) and all(name.startswith(WRAPPED) for name in strange)
    hint = (
        "merge the adapter and save the model that it wraps" if wrapped else "save the model whole; nothing is made up"
    )
    raise MissingError(f"{where}: {told}; {hint}")


def check_shapes(where: str, *, needed: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Return when ``found`` has the names of ``needed`` and their shapes; values are tensors, or have a ``shape``.

    Raises:
        MissingError: it has not; a few tensors are named, with their number.
    """
    both = needed.keys() & found.keys()
    shapes = [(name, tuple(found[name].shape), tuple(needed[name].shape)) for name in both]
    check_tensors(
        where,
        missing=needed.keys() - found.keys(),
        unexpected=found.keys() - needed.keys(),
        mismatched=[row for row in shapes if row[1] != row[2]],
    )
    check_finite(where, found)


def check_finite(where: str, tensors: Mapping[str, Any]) -> None:
    """Return when every number of the tensors is finite: a fused kernel passes over NaN without a word.

    Raises:
        MissingError: one is not; a few tensors are named, with their number.
    """
    import torch

    real = {n: t for n, t in tensors.items() if isinstance(t, torch.Tensor) and t.is_floating_point()}
    broken = sorted(name for name, tensor in real.items() if not bool(torch.isfinite(tensor).all()))
    if broken:
        told = _fault("holding NaN or infinity", broken, SHOWN)
        raise MissingError(f"{where}: {told}; the checkpoint is damaged or has diverged")


def read_model(
    auto: Any, place: str, where: str, *, spare: Collection[str] = (), given: Collection[str] = (), **settings: Any
) -> Any:
    """Return ``auto.from_pretrained(place, **settings)``, every tensor of it from its files; no log is written.

    What a class declares harmless (old buffers) and ties that the config declares are no fault. A pooler that is not
    there at all is none either where ``spare`` names it: last hidden states do not pass it.

    Args:
        auto: a class of transformers.
        place: folder, or id of the hub.
        where: what messages call it.
        spare: of ``HEADS``, those that may be in the files without being read.
        given: names that come from elsewhere, and may be missing here or have another shape.
        settings: for ``from_pretrained``.

    Raises:
        MissingError: a tensor is missing, unknown or of another shape.
    """
    if "gguf_file" not in settings:
        _check_scaled(Path(place), where)
    try:
        with _quietly():
            model, told = auto.from_pretrained(
                place, output_loading_info=True, ignore_mismatched_sizes=True, **settings
            )
    except RuntimeError as error:
        _check_failed(where, error)
        raise
    poolers = {name for name in model.state_dict() if is_head(name, {"pooler"})}
    missing = set(told["missing_keys"]) - set(given)
    check_tensors(
        where,
        missing=missing - poolers if "pooler" in spare and poolers <= missing else missing,
        unexpected={n for n in told["unexpected_keys"] if not (is_head(n, spare) or re.search(HARMLESS, n))},
        mismatched=[row for row in told["mismatched_keys"] if row[0] not in given],
    )
    check_finite(where, {name: value for name, value in model.named_parameters() if name not in given})
    return model


def _check_scaled(folder: Path, where: str) -> None:
    """Return when no weight of a folder is in a quantised form that its config says nothing of.

    Such values are read as they stand, without the scales that they are to be multiplied by.

    Raises:
        MissingError: one is.
    """
    from safetensors import safe_open

    config = folder / "config.json"
    if not config.is_file() or b'"quantization_config"' in config.read_bytes():
        return
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no mapping)
        for name, kind in kinds.items():
            if name.endswith("weight") and kind.startswith(("I", "U", "F8", "F4")):
                raise MissingError(
                    f"{where}: {inert(name, most=90)} is in {kind}, and config.json has no quantization_config that "
                    "says by what it is scaled; save the model in float32, bfloat16 or float16"
                )


def check_gguf(path: Path) -> None:
    """Return when a GGUF file has no tensor that its architecture, or its number of layers, has no place for.

    transformers leaves such a tensor unread and does not say so. An architecture that the ``gguf`` package does not
    know is passed over.

    Raises:
        MissingError: it has; a few are named, with their number.
    """
    from gguf import MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES, GGUFReader

    reader = GGUFReader(path)
    name = reader.fields["general.architecture"].contents()
    layers = range(int(reader.fields[f"{name}.block_count"].contents()))
    parts = next((MODEL_TENSORS[arch] for arch, known in MODEL_ARCH_NAMES.items() if known == name), None)
    if parts is not None:
        known = {TENSOR_NAMES[part].format(bid=layer) for part in parts for layer in layers}
        held = [tensor.name for tensor in reader.tensors]
        check_tensors(f"model {path}", unexpected=[n for n in held if n.rsplit(".", 1)[0] not in known])


def is_head(name: str, heads: Collection[str]) -> bool:
    """Return whether a tensor belongs to one of the heads; a pooler stands inside the body, all others beside it."""
    first, *rest = name.split(".")
    return first in heads or name in heads or ("pooler" in heads and rest[:1] == ["pooler"])


def _check_failed(where: str, error: Exception) -> None:
    """Raise what is known of the tensors where transformers fails over them without saying which they are.

    It does so where experts are stacked into one tensor, and where a tied tensor has another shape.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        told: Any = frame.f_locals.get("loading_info")
        if hasattr(told, "conversion_errors"):
            check_tensors(
                where,
                missing={*told.missing_keys, *told.conversion_errors} - {name for name, _, _ in told.mismatched_keys},
                mismatched=told.mismatched_keys,
            )


def _fault(what: str, names: Sequence[str], most: int) -> str:
    # Names are text of a file: one line, bounded, without control characters.
    inert = ["".join(c if c.isprintable() else "\ufffd" for c in name[:90]) for name in names[:most]]
    shown = ", ".join(inert) + (f" and {len(names) - most} more" if len(names) > most else "")
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} {what}: {shown}"


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the loader from telling at length what is told in one line, and what is meant to be so."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""Names under which configs state the longest text; the first that is there counts."""
OFFSET = ("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "longformer", "mpnet",
          "data2vec-text", "ibert", "luke", "xmod")  # fmt: skip
"""Types of models that count positions from the row after the padding's."""
STRETCHED = ("linear", "dynamic", "yarn")
"""Kinds of rotary scaling by which a config stretches the length that it states."""
AFTER_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Names under which configs state a cap or a scale of logits (Gemma 2, Cohere, Granite); 0 and 1 change nothing."""
UNLIMITED = 1 << 30
"""Tokens of the longest prompt where neither the caller nor the model sets a limit."""
_SHOWN = 3


def positions(config: Any) -> int | None:
    """Return the longest text, in tokens, that a model of this config was made for; none: it states no such length.

    Beyond a table of positions there is nothing to look up. Rotary models compute something there, which they were
    never trained on: a probability of it says nothing, so that the length that their config states counts alike.
    """
    text = config.get_text_config()
    stated = next((value for value in (getattr(text, name, None) for name in POSITIONS) if value), None)
    if not isinstance(stated, int) or stated < 1 or _is_relative(text):
        return None
    if text.model_type in OFFSET:
        return stated - (text.pad_token_id or 0) - 1
    return _stretched(stated, text)


def changed_logits(config: Any) -> str:
    """Return what a model does to its logits after the output head, as its config says it; empty: nothing."""
    text = config.get_text_config()
    stated = {name: getattr(text, name, None) for name in AFTER_HEAD}
    return next((f"{name}: {value}" for name, value in stated.items() if value not in (None, 0, 1)), "")


def _is_relative(text: Any) -> bool:
    """Return whether only distances between tokens matter, as in DeBERTa: no position is looked up in a table."""
    return bool(getattr(text, "relative_attention", False)) and not getattr(text, "position_biased_input", True)


def _stretched(stated: int, text: Any) -> int:
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if scaling.get("rope_type", scaling.get("type")) not in STRETCHED:
        return stated
    original = scaling.get("original_max_position_embeddings") or stated
    return max(stated, int(original * float(scaling.get("factor") or 1)))


def embedding_rows(model: Any) -> int:
    """Return the number of token ids that a model has an embedding for."""
    rows: int = model.get_input_embeddings().weight.shape[0]
    return rows


def check_vocabulary(tokenizer: Any, rows: int, where: str) -> None:
    """Check that every token has a row of the embedding.

    A padding token may lack one, since another id pads as well. So may a special token that the tokenizer names in no
    role, since no text can write it: readers of GGUF files add one to tokenizers that spell everything in bytes.

    Raises:
        MissingError: a few of the tokens without a row are named.
    """
    added = {i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    spare = (added - set(tokenizer.all_special_ids)) | {tokenizer.pad_token_id}
    spare -= {tokenizer.eos_token_id, tokenizer.bos_token_id}
    beyond = sorted((i, name) for name, i in tokenizer.get_vocab().items() if i >= rows and i not in spare)
    if beyond:
        shown = ", ".join(f"{ascii(name)[:60]} ({i})" for i, name in beyond[:_SHOWN])
        more = f" and {len(beyond) - _SHOWN} more" if len(beyond) > _SHOWN else ""
        raise MissingError(
            f"{where}: {len(beyond)} tokens of its tokenizer have no row among the {rows} of the embedding: "
            f"{shown}{more}; resize the embedding and save again, or take the model's own tokenizer"
        )


def usable_length(given: int, longest: int | None, *, stated: bool, what: str) -> int:
    """Return a length that is asked for; one that nobody stated gives way to what the model can hold.

    Args:
        given: the length, in tokens.
        longest: what the model can hold; none: there is no such length.
        stated: whether ``given`` was said, and is not a default.
        what: names the key and the model in the message.

    Raises:
        UsageError: more was stated than the model can hold.
    """
    if longest is None or given <= longest:
        return given
    if stated:
        raise UsageError(f"{what} {given}: the model has {longest} positions; give at most {longest}")
    return longest


def prompt_room(prompt: int | None, response: int, longest: int | None, *, names: tuple[str, str]) -> int:
    """Return how many tokens a prompt may have beside a response of ``response`` tokens.

    Args:
        prompt: what is asked for; none: what the model leaves.
        response: the longest response.
        longest: what the model can hold, both together; none: there is no such length.
        names: of the keys or options of the prompt's and the response's length.

    Raises:
        UsageError: the two are more than the model can hold.
    """
    if longest is None:
        return UNLIMITED if prompt is None else prompt
    room = longest - response
    told = f"the model has {longest} positions for prompt and response together"
    if room < 1:
        raise UsageError(f"{names[1]} {response}: {told}; give less, so that prompts have room")
    if prompt is not None and prompt > room:
        raise UsageError(f"{names[0]} {prompt}, {names[1]} {response}: {told}; {names[0]} can be {room} at most")
    return room if prompt is None else prompt
