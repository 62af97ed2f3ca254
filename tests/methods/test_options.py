"""Settings of one method: defaults, and mistakes that are refused before anything runs."""

import pytest

from dualign.errors import UsageError
from dualign.methods.options import Option, filled

KNOWN = (Option("tau", 0.5, "width of the weights"), Option("form", "paper", "which formula", ("paper", "code")))


def test_what_is_not_given_has_its_default() -> None:
    assert dict(filled("m", KNOWN, {"tau": 2.0})) == {"tau": 2.0, "form": "paper"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tua": 1.0}, "did you mean 'tau'"),
        ({"tau": "wide"}, "option tau of m: expected a number"),
        ({"form": "cod"}, "expected one of paper, code"),
        ({"form": 1.0}, "expected one of paper, code"),
    ],
)
def test_mistakes(given: dict[str, float | str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        filled("m", KNOWN, given)
