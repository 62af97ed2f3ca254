"""One line about a name that no table has."""

import difflib
from collections.abc import Iterable


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """Return the message for a name that is not ``known``, with the nearest one where there is one."""
    names = list(known)
    near = difflib.get_close_matches(given.lower(), names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return f"{what}: unknown {given!r}; {hint}"
