"""How a scorer is described in a config: one strict model a kind, read with errors that name the mend."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dualign.errors import ConfigError, MissingError, nearest
from dualign.hashing import digest, file_digest
from dualign.protocols import Direction, Scorer
from dualign.records import FloatArray, Prompt, Turn


class ScorerSpec(BaseModel):
    """The keys of one kind of scorer."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Spec = TypeVar("Spec", bound=ScorerSpec)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a scorer is built with, besides its own keys."""

    direction: Direction
    folder: Path
    """Where relative paths start: the folder of the config."""
    tokenizer: Any
    """The policy's tokenizer, for scorers that count tokens and name none of their own; may be none."""
    make: Callable[[Mapping[str, Any]], Scorer]
    """Builds a scorer inside a scorer, with the same direction and folder."""


def existing(folder: Path, path: str, what: str) -> Path:
    """Return ``path`` from the folder.

    Raises:
        MissingError: there is nothing at that path.
    """
    found = folder / Path(path).expanduser()
    if not found.exists():
        raise MissingError(f"{what}: no such file or folder {str(found)!r}")
    return found


@dataclass(frozen=True, slots=True)
class FunctionScorer:
    """A scorer that is a function, and what it says of itself."""

    id: str
    direction: Direction
    revision: str
    """Hash of all that determines the numbers."""
    score: Callable[[Sequence[Prompt], Sequence[str]], FloatArray]
    words_read: int | None = None
    """How many words of an answer are read at the most; none: all."""
    inner: tuple[Scorer, ...] = ()
    """Scorers that it is made of."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[response]`` scores; raises what the function raises."""
        return self.score(prompts, responses)


def read_spec(kind: type[Spec], values: Mapping[str, Any], where: str) -> Spec:
    """Return the checked keys of one scorer.

    Raises:
        ConfigError: a key is unknown (the nearest is named), missing, or has a wrong value.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_mistake(kind, error)}") from None


def _first_mistake(kind: type[ScorerSpec], error: ValidationError) -> str:
    mistakes = error.errors(include_url=False)
    # A key that is misspelt is missing too, and its name says more.
    mistake = next((found for found in mistakes if found["type"] == "extra_forbidden"), mistakes[0])
    location = [str(part) for part in mistake["loc"]]
    key = ".".join(location)
    if mistake["type"] == "extra_forbidden":
        known = list(kind.model_fields) if len(location) == 1 else _inner_keys(kind, location[0])
        return f"unknown key {key!r}; {nearest(location[-1], known)}"
    if mistake["type"] == "missing":
        return f"key {key!r} is needed"
    message = mistake["msg"].removeprefix("Value error, ")
    return f"key {key!r}: {message}; given {mistake['input']!r}" if key else message


def _inner_keys(kind: type[ScorerSpec], name: str) -> list[str]:
    """Return the keys of the model that the field ``name`` holds, alone or in a union with none."""
    annotation = kind.model_fields[name].annotation
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return list(candidate.model_fields)
    return []


def revision_of(**facts: Any) -> str:
    """Return 16 hexadecimal digits of SHA-256 over all that determines a scorer's numbers (JSON, keys sorted)."""
    return digest(json.dumps(facts, sort_keys=True, ensure_ascii=True, allow_nan=False))[:16]


def folder_revision(folder: Path) -> str:
    """Return a hash of the names and contents of all files right inside ``folder``."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return digest(*(f"{path.name}\n{file_digest(path)}\n" for path in files))[:16]


def tokenizer_revision(tokenizer: Any) -> str:
    """Return a hash of a tokenizer: of the whole fast one, else of its class and vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return digest(backend.to_str())[:16]
    return digest(json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]))[:16]


RESPONSE = "{response}"
_SLOT = re.compile(r"\{(prompt|response)\}")


def conversation_text(history: Sequence[Turn], text: str) -> str:
    """Return the prompt ``text``; after other turns, the whole conversation, each turn led by its speaker."""
    if not history:
        return text
    return "\n".join(f"{turn.role}: {turn.text}" for turn in (*history, Turn("user", text)))


def fill(wording: str, *, prompt: str, response: str) -> str:
    """Return ``wording`` with {prompt} and {response} replaced in one pass; every other brace stays.

    A "{response}" inside a prompt is text, and no attribute of anything can be named.
    """
    texts = {"prompt": prompt, "response": response}
    return _SLOT.sub(lambda slot: texts[slot[1]], wording)
