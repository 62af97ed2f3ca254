"""Settings of one method: defaults, and mistakes that are refused before anything runs."""

import math

import pytest

from dualign.errors import UsageError
from dualign.methods.options import COUNT, NOT_NEGATIVE, POSITIVE, Option, Range, filled
from dualign.methods.table import METHODS

KNOWN = (
    Option("tau", 0.5, "width of the weights", within=POSITIVE),
    Option("form", "paper", "which formula", ("paper", "code")),
)


def test_what_is_not_given_has_its_default() -> None:
    assert dict(filled("m", KNOWN, {"tau": 2.0})) == {"tau": 2.0, "form": "paper"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tua": 1.0}, "did you mean 'tau'"),
        ({"tau": "wide"}, "option tau of m: expected a number above 0, got 'wide'"),
        ({"tau": 0.0}, "option tau of m: expected a number above 0, got 0.0"),
        ({"form": "cod"}, "expected one of paper, code"),
        ({"form": 1.0}, "expected one of paper, code"),
    ],
)
def test_mistakes(given: dict[str, float | str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        filled("m", KNOWN, given)


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "words"),
    [
        (POSITIVE, [1e-9, 5], [0, -1, math.inf, math.nan], "a number above 0"),
        (NOT_NEGATIVE, [0, 1e9], [-1e-9, math.inf, math.nan], "a number from 0"),
        (COUNT, [1, 7.0], [0, 2.5, -3, math.inf, math.nan], "a whole number from 1"),
        (Range(0, 1, low_included=False), [1e-9, 1], [0, 1.001], "a number above 0 up to 1"),
        (Range(0, 0.5, high_included=False), [0, 0.499], [0.5, -0.1], "a number from 0 below 0.5"),
    ],
)
def test_ranges(allowed: Range, inside: list[float], outside: list[float], words: str) -> None:
    assert all(value in allowed for value in inside)
    assert not any(value in allowed for value in outside)
    assert str(allowed) == words


@pytest.mark.parametrize("name", METHODS)
def test_no_method_takes_a_number_that_is_not_finite_and_all_take_their_defaults(name: str) -> None:
    options = METHODS[name].options
    filled(name, options, {option.name: option.default for option in options})
    for option in options:
        if not option.choices:
            with pytest.raises(UsageError, match=f"option {option.name} of {name}: expected a"):
                filled(name, options, {option.name: math.nan})
