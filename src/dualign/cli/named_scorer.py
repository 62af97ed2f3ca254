"""How a scorer is named on the command line, and the scorer that is meant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dualign.errors import ConfigError, MissingError, UsageError

if TYPE_CHECKING:
    from dualign.scorers.protocol import Scorer

Direction = Literal["reward", "cost"]
FILES = (".yaml", ".yml", ".json")
INLINE = "kind="
INSIDE = "scorer.yaml"
"""The description inside the folder of a fitted scorer."""


@dataclass(frozen=True, slots=True)
class NamedScorer:
    """A scorer that was named and not built yet."""

    spec: Mapping[str, Any]
    direction: Direction
    folder: Path
    """Where the paths of its keys start."""
    typed: bool
    """Whether its keys were typed, and not read from a file."""

    def build(self) -> "Scorer":
        """Return the scorer.

        Raises:
            UsageError, ConfigError: a mistake in the keys, where they were typed and where they are in a file.
            MissingError: a file or a model of it is missing.
        """
        from dualign.scorers.table import make_scorer

        try:
            return make_scorer(self.spec, direction=self.direction, folder=self.folder)
        except ConfigError as error:
            if self.typed:
                raise UsageError(str(error)) from None
            raise


def named_scorer(
    name: str, settings: Sequence[str] = (), *, direction: Direction | None, default: Direction
) -> NamedScorer:
    """Return what ``name`` stands for; nothing is built.

    Args:
        name: a kind, ``kind=K,key=value``, a YAML or JSON file, the folder of a fitted scorer, or ``module:attribute``.
        settings: further ``key=value``, for values that hold a comma.
        direction: what it is used as; none: the only one that its kind allows, else ``default``.
        default: see above.

    Raises:
        UsageError: what was typed is not of this form.
        MissingError, ConfigError: the file is missing or broken.
    """
    from dualign.scorers.table import KINDS

    inline = name.startswith(INLINE)
    file = Path(name) / INSIDE if not inline and Path(name).is_dir() else Path(name)
    typed = inline or file.suffix not in FILES
    spec = _typed(name) if typed else _read(file)
    for setting in settings:
        key, value = _setting(setting, f"--set {setting!r}", "key=value is needed, such as unit=words")
        spec[key] = value
    kind = KINDS.get(str(spec.get("kind")))
    chosen = direction or (kind.direction if kind else None) or default
    return NamedScorer(spec, chosen, Path() if typed else file.parent, typed)


def _typed(name: str) -> dict[str, Any]:
    """Return the keys of a scorer that is named without a file."""
    if name.startswith(INLINE):
        wanted = "kind=K,key=value,... is needed; put values with commas into a YAML file"
        return dict(_setting(part, f"scorer {name!r}", wanted) for part in name.split(","))
    return {"kind": "callable", "target": name} if ":" in name else {"kind": name}


def _setting(text: str, where: str, wanted: str) -> tuple[str, Any]:
    from dualign.strict import parse_yaml

    key, sign, value = text.partition("=")
    if not sign or not key:
        raise UsageError(f"{where}: {wanted}")
    try:
        return key, parse_yaml(value, f"{key} of the scorer")
    except ConfigError as error:
        raise UsageError(f"{where}: {error}; a text that is no YAML needs quotes inside the shell's own") from None


def _read(path: Path) -> dict[str, Any]:
    from dualign.strict import parse_yaml

    try:
        value = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise MissingError(f"scorer {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"scorer {path}: is not UTF-8 ({error.reason})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {type(value).__name__}; a mapping with 'kind' is needed")
    return value
