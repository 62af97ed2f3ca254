"""YAML text to values under the YAML 1.2 core schema: 1e-5 is a number, ``no`` a string. A leaf."""

import re
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


def _unique_mapping(loader: _CoreLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Return the mapping of ``node``; two equal keys are an error."""
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool):
            raise yaml.constructor.ConstructorError(None, None, "a key that is not a scalar", key_node.start_mark)
        if key in mapping:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


def _number(kind: type[int] | type[float]) -> Any:
    """Return a constructor of numbers (``.inf`` and ``.nan`` without their dots)."""

    def construct(loader: _CoreLoader, node: yaml.ScalarNode) -> int | float:
        text = str(loader.construct_scalar(node))
        return kind(re.sub(r"\.(?=inf|nan)", "", text.lower()))

    return construct


_CoreLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
_CoreLoader.add_constructor("tag:yaml.org,2002:float", _number(float))
_CoreLoader.add_constructor("tag:yaml.org,2002:int", _number(int))


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
