"""What a model can hold: positions, and rows of its embedding; read from it, and said before anything is computed."""

from __future__ import annotations

from typing import Any

from dualign.errors import MissingError, UsageError

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
