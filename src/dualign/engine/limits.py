"""What a model can hold: positions, and rows of its embedding. Read from the model, said before anything is computed."""

from __future__ import annotations

from typing import Any

from dualign.errors import MissingError

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""Names under which configs state the longest text; the first that is there counts."""
OFFSET = ("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "longformer", "mpnet",
          "data2vec-text", "ibert", "luke", "xmod")  # fmt: skip
"""Types of models that count positions from the row after the padding's."""
STRETCHED = ("linear", "dynamic", "yarn")
"""Kinds of rotary scaling by which a config stretches the length that it states."""
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
    """Check that every token has a row of the embedding; a padding token may lack one, since another id pads as well.

    Raises:
        MissingError: a few of the tokens without a row are named.
    """
    padding = {tokenizer.pad_token_id} - {tokenizer.eos_token_id, tokenizer.bos_token_id}
    beyond = sorted((i, name) for name, i in tokenizer.get_vocab().items() if i >= rows and i not in padding)
    if beyond:
        shown = ", ".join(f"{ascii(name)[:60]} ({i})" for i, name in beyond[:_SHOWN])
        more = f" and {len(beyond) - _SHOWN} more" if len(beyond) > _SHOWN else ""
        raise MissingError(
            f"{where}: {len(beyond)} tokens of its tokenizer have no row among the {rows} of the embedding: "
            f"{shown}{more}; resize the embedding and save again, or take the model's own tokenizer"
        )
