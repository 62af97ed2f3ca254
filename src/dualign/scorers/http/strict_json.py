"""JSON as the standard has it: no NaN, no key twice, nothing cut off."""

import json
from typing import Any


def parse(text: str) -> Any:
    """Return the value of ``text``.

    Raises:
        ValueError: it is not JSON, or one of the things that parsers let pass: NaN, Infinity, a key given twice
            (of which the last would win silently), numbers and nesting without end.
    """
    try:
        return json.loads(text, parse_constant=_constant, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found
