"""YAML 1.2 core schema, not YAML 1.1: what people write is what they get, and everything else is one line."""

import math

import pytest

from dualign.errors import ConfigError
from dualign.strict import dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3", -3),
        ("+3", 3),
        ("010", 10),
        ("3.", 3.0),
        ("no", "no"),
        ("yes", "yes"),
        ("off", "off"),
        ("y", "y"),
        ("12:30:45", "12:30:45"),
        ("2024-03-05", "2024-03-05"),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("'1e-5'", "1e-5"),
        ("[1, 2.0, a]", [1, 2.0, "a"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_scalars_of_the_core_schema(text: str, value: object) -> None:
    found = parse_yaml(text, "text")
    assert found == value and type(found) is type(value)


def test_not_a_number() -> None:
    assert math.isnan(parse_yaml(".nan", "text"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "f line 3: the key 'a' stands twice"),
        ("a: {b: 1, b: 2}", "f line 1: the key 'b' stands twice"),
        ("a: [1\n", "f line 2: expected ',' or ']'"),
        ("a:\n\tb: 1\n", "f line 2: found character '\\t'"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: !!int many", "f line 1: !!int before 'many', which is none"),
        ("a: !!int 1_0", "!!int before '1_0'"),
        ("a: !!bool foo", "!!bool before 'foo'"),
        ("a: !!float x", "!!float before 'x'"),
        ("a: !!null foo", "!!null before 'foo'"),
        ("a: !!timestamp foo", "could not determine a constructor"),
        ("a: !!timestamp 2024-01-01", "could not determine a constructor"),
        ("a: !!set foo", "could not determine a constructor"),
        ("a: !!binary foo", "could not determine a constructor"),
        ('a: "\\ud800"', "f line 1: a text that holds half of a character"),
        ("!!map foo", "a mapping is needed"),
        ("!!map [a]", "a mapping is needed"),
        ("a: &x [*x]", "recursive"),
        ("? [1, 2]\n: 3\n", "a key that is not a scalar"),
        ("a: 1\n---\nb: 2\n", "another document"),
        ("a: \0", "special characters"),
        ("[" * 3000 + "]" * 3000, "nested too deeply"),
    ],
)
def test_what_is_not_a_config_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_yaml(text, "f")
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_two_halves_of_a_character_in_json_are_one() -> None:
    assert parse_yaml('{"a": "\\ud83d\\ude00 \\ufeffx"}', "f") == {"a": "\U0001f600 \ufeffx"}


@pytest.mark.parametrize(
    "text", ["1e-5", "1e400", ".5", "010", "no", "~", "", "true", "0x1F", "a: b", "- a", "é\n\x1b", " a "]
)
def test_a_text_that_looks_like_a_value_is_written_so_that_it_is_read_as_a_text(text: str) -> None:
    value = {text: [text, 1e-05, 1e400, -3, None, True], "order": {"b": text, "a": 1}}
    read = parse_yaml(dump_yaml(value), "x")
    assert read == value and list(read["order"]) == ["b", "a"]
