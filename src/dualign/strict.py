"""Text to values, strictly. A leaf.

YAML under the 1.2 core schema: 1e-5 is a number, ``no`` a string. JSON as the standard has it: no NaN, no key twice.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import yaml

from dualign.errors import ConfigError


class _CoreLoader(yaml.SafeLoader):
    """A safe loader with the core schema's scalars; duplicate keys are refused."""


_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "null": (r"~|null|Null|NULL|", "~nN"),
}

_CoreLoader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _SCALARS.items():
    _starts = [*_first, ""] if _tag == "null" else list(_first)
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _starts)


def _unique_mapping(loader: _CoreLoader, node: yaml.Node) -> dict[Any, Any]:
    """Return the mapping of ``node``; two equal keys are an error."""
    if not isinstance(node, yaml.MappingNode):
        raise _mistake("a mapping is needed after this tag", node)
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool):
            raise _mistake("a key that is not a scalar", key_node)
        if key in mapping:
            raise _mistake(f"the key {key!r} stands twice", key_node)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


def _mistake(what: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


def _scalar(kind: str, convert: Callable[[str], Any]) -> Callable[[_CoreLoader, yaml.ScalarNode], Any]:
    """Return the constructor of one kind of scalar; a tag may stand before a text that is none."""

    def construct(loader: _CoreLoader, node: yaml.ScalarNode) -> Any:
        text = str(loader.construct_scalar(node))
        if not re.fullmatch(_SCALARS[kind][0], text):
            raise _mistake(f"!!{kind} before {text[:40]!r}, which is none", node)
        return convert(text)

    return construct


def _text(loader: _CoreLoader, node: yaml.ScalarNode) -> str:
    """Return a text; an escape in quotes can name half of a character, which no file and no hash can hold.

    The two halves that JSON writes for one character are joined.
    """
    text = str(loader.construct_scalar(node))
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _mistake("a text that holds half of a character (a lone surrogate)", node) from None


def _float(text: str) -> float:
    """Return a number; YAML writes ``.inf`` and ``.nan``, Python without their dots."""
    return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))


# The constructors of the core schema and no others: those of YAML 1.1 (timestamps, sets, binary) raise what they like.
_CoreLoader.yaml_constructors = {
    "tag:yaml.org,2002:map": _unique_mapping,
    "tag:yaml.org,2002:seq": yaml.SafeLoader.construct_yaml_seq,
    "tag:yaml.org,2002:str": _text,
    "tag:yaml.org,2002:bool": _scalar("bool", lambda text: text.lower() == "true"),
    "tag:yaml.org,2002:int": _scalar("int", int),
    "tag:yaml.org,2002:float": _scalar("float", _float),
    "tag:yaml.org,2002:null": _scalar("null", lambda _: None),
    None: yaml.SafeLoader.construct_undefined,
}


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of a YAML 1.2 text.

    Raises:
        ConfigError: it does not parse, or a key stands twice; the message has the line.
    """
    try:
        return yaml.load(text, Loader=_CoreLoader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
        raise ConfigError(f"{where}{line}: {' '.join(str(problem).split())}") from None
    except ValueError as error:
        # a tag such as !!int before something that is none
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply") from None


class _CoreDumper(yaml.SafeDumper):
    """Quotes every string that the YAML 1.2 reader would take for something else (``1e-5``)."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        same = bool(parse_yaml(text, "text") == text)
    except ConfigError:
        same = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if same else '"')


_CoreDumper.add_representer(str, _represent_text)


def dump_yaml(value: object) -> str:
    """Return the YAML that ``parse_yaml`` reads back as ``value``, keys in their order."""
    return str(yaml.dump(value, Dumper=_CoreDumper, sort_keys=False, allow_unicode=True))


def parse_json(text: str | bytes, *, constants: bool = False) -> Any:
    """Return the value of a JSON text.

    ``constants`` lets NaN and Infinity pass, which Python writes, where what reads them refuses them by name.

    Raises:
        ValueError: it is not JSON, or one of the things that parsers let pass: NaN, Infinity, a key given twice
            (of which the last would win silently), numbers and nesting without end.
    """
    try:
        return json.loads(text, parse_constant=None if constants else _constant, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice in one object")
    return found
