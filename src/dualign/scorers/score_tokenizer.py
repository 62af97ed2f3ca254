"""Does a tokenizer belong to a score model? A wrong one gives numbers without any sign that they are wrong."""

from typing import Any

from dualign.errors import DataError

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


def check_end_token(tokenizer: Any, config: Any, where: str) -> None:
    """Check that the tokenizer's end token is one that the config names.

    Raises:
        DataError: it is not: scores would be read at a token that the head was not trained on.
    """
    named = config.eos_token_id
    known = named if isinstance(named, list) else [named]
    if named is not None and tokenizer.eos_token_id not in known:
        raise DataError(
            f"score checkpoint {where}: its tokenizer ends with token {tokenizer.eos_token_id}, its config says {named}"
        )
