"""What is read of a model's files, and how long a text the model can hold; no tensor is made up.

transformers and PEFT draw a tensor that they do not find, and tell of it in a log. A score or a probability then means
nothing, and another one at every start: one function compares what a checkpoint holds with what its model needs.
"""

from __future__ import annotations

import re
import struct
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dualign.errors import MissingError, UsageError, inert
from dualign.strict import parse_json

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


@contextmanager
def readable(where: str, fault: str = "cannot be read") -> Iterator[None]:
    """Turn what libraries raise about a damaged or foreign file into one line: ``where``, ``fault`` and the reason."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    # The last six: a value of a config is of another kind than its reader takes for granted.
    except (
        OSError, ValueError, RuntimeError, ImportError, struct.error, SafetensorError,
        LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, StrictDataclassError,
    ) as error:  # fmt: skip
        raise MissingError(f"{where}: {fault} ({type(error).__name__}: {first_line(error)})") from error


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, and the next where that only introduces it, in 200 characters."""
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    return (f"{first} {more[0].strip()}" if first.endswith(":") and more else first)[:200]


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers from telling at length, and from drawing bars of, what is told in one line."""
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


def read_mapping(path: Path, where: str) -> dict[str, Any]:
    """Return the settings that another program wrote into a JSON file.

    Raises:
        MissingError: it cannot be read, or holds no mapping; the message begins with ``where``.
    """
    with readable(where, f"{path.name} cannot be read"):
        found = parse_json(path.read_bytes(), constants=True)
    if not isinstance(found, dict):
        raise MissingError(f"{where}: {path.name} cannot be read (it holds no mapping)")
    return found


def check_tensors(
    where: str,
    *,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    mismatched: Iterable[Mismatch] = (),
    prefix: str = "",
) -> None:
    """Return when nothing is missing, unexpected or of another shape.

    Args:
        where: whose tensors they are, such as ``model ./folder``.
        missing: names that the model needs and the files do not hold.
        unexpected: names that the files hold and the model has not.
        mismatched: names that both have, with two shapes.
        prefix: what may stand before every name, and is not told.

    Raises:
        MissingError: some are; a few are named, with their number.
    """
    strange = sorted(name.removeprefix(prefix) for name in unexpected)
    shapes = [f"{name} {list(own)} (needs {list(needed)})" for name, own, needed in sorted(mismatched)]
    found = {
        "missing": sorted(name.removeprefix(prefix) for name in missing),
        "not part of this model": strange,
        "of another shape": [told.removeprefix(prefix) for told in shapes],
    }
    faults = {what: names for what, names in found.items() if names}
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
    check_tensors(
        where,
        missing=needed.keys() - found.keys(),
        unexpected=found.keys() - needed.keys(),
        mismatched=mismatches(needed, found),
    )
    check_finite(where, found)


def mismatches(needed: Mapping[str, Any], found: Mapping[str, Any]) -> list[Mismatch]:
    """Return the names that both have, with two shapes."""
    both = [(name, tuple(found[name].shape), tuple(needed[name].shape)) for name in needed.keys() & found.keys()]
    return [row for row in both if row[1] != row[2]]


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
        with quietly():
            model, told = auto.from_pretrained(
                place, output_loading_info=True, ignore_mismatched_sizes=True, **settings
            )
    except RuntimeError as error:
        # It does not say which tensors where experts are stacked into one, or a tied one has another shape.
        for frame, _ in traceback.walk_tb(error.__traceback__):
            known: Any = frame.f_locals.get("loading_info")
            if hasattr(known, "conversion_errors"):
                shapes = known.mismatched_keys
                missing = {*known.missing_keys, *known.conversion_errors} - {name for name, _, _ in shapes}
                check_tensors(where, missing=missing, mismatched=shapes)
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
    config = folder / "config.json"
    if not config.is_file() or b'"quantization_config"' in config.read_bytes():
        return
    for path in sorted(folder.glob("*.safetensors")):
        for name, (kind, _) in headers(path).items():
            if name.endswith("weight") and kind.startswith(("I", "U", "F8", "F4")):
                raise MissingError(
                    f"{where}: {inert(name, most=90)} is in {kind}, and config.json has no quantization_config that "
                    "says by what it is scaled; save the model in float32, bfloat16 or float16"
                )


def headers(path: Path) -> dict[str, tuple[str, Shape]]:
    """Return the kind of number and the shape of every tensor of a safetensors file, none of which is read."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


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


def _fault(what: str, names: Sequence[str], most: int) -> str:
    """Return one kind of fault with a few of the names, which are text of a file."""
    known = _few([inert(name, most=90) for name in names], most)
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} {what}: {known}"


def _few(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


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


def positions(config: Any) -> int | None:
    """Return the longest text, in tokens, that a model of this config was made for; none: it states no such length.

    Beyond a table of positions there is nothing to look up. Rotary models compute something there, which they were
    never trained on: a probability of it says nothing, so that the length that their config states counts alike.
    """
    text = config.get_text_config()
    stated = next((value for value in (getattr(text, name, None) for name in POSITIONS) if value), None)
    # In DeBERTa only distances between tokens matter: no position is looked up in a table.
    relative = getattr(text, "relative_attention", False) and not getattr(text, "position_biased_input", True)
    if not isinstance(stated, int) or stated < 1 or relative:
        return None
    if text.model_type in OFFSET:
        return stated - (text.pad_token_id or 0) - 1
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if scaling.get("rope_type", scaling.get("type")) not in STRETCHED:
        return stated
    original = scaling.get("original_max_position_embeddings") or stated
    return max(stated, int(original * float(scaling.get("factor") or 1)))


def changed_logits(config: Any) -> str:
    """Return what a model does to its logits after the output head, as its config says it; empty: nothing."""
    text = config.get_text_config()
    stated = {name: getattr(text, name, None) for name in AFTER_HEAD}
    return next((f"{name}: {value}" for name, value in stated.items() if value not in (None, 0, 1)), "")


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
        few = _few([f"{ascii(name)[:60]} ({i})" for i, name in beyond], SHOWN)
        raise MissingError(
            f"{where}: {len(beyond)} tokens of its tokenizer have no row among the {rows} of the embedding: "
            f"{few}; resize the embedding and save again, or take the model's own tokenizer"
        )


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
