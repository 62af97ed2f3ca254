"""A finite world from a JSON file: prompts with every response they can get, and all figures raw.

``{"beta": b, "limits": {name: d}, "prompts": [{"prompt": str, "weight": w, "responses":
[{"response": str, "reference": p, "reward": r, "costs": {name: c}}]}]}``
"""

import json
import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from dualign.errors import DataError, MissingError, nearest
from dualign.maths.exact import FiniteProblem
from dualign.maths.one_shot import finite_problem
from dualign.records import FloatArray, Group, Prompt, Response
from dualign.strict import parse_json


@dataclass(frozen=True, slots=True)
class WorldResponse:
    """One response of a finite world."""

    text: str
    reference: float
    """Probability under the reference; those of a prompt sum to one."""
    reward: float
    costs: FloatArray
    """Shape ``[constraint]``, in the order of the world's limits."""


@dataclass(frozen=True, slots=True)
class WorldPrompt:
    """One prompt of a finite world."""

    text: str
    weight: float
    """Probability of the prompt; all prompts sum to one."""
    responses: tuple[WorldResponse, ...]


@dataclass(frozen=True, slots=True)
class World:
    """A finite constrained problem, in raw units."""

    beta: float
    limits: Mapping[str, float]
    """Constraint -> largest expected cost that is allowed; its order is that of every vector over constraints."""
    prompts: tuple[WorldPrompt, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the constraints' names."""
        return tuple(self.limits)

    def problem(self) -> FiniteProblem:
        """Return the problem as arrays; prompts with fewer responses are padded with probability zero."""
        shape = len(self.prompts), max(len(prompt.responses) for prompt in self.prompts)
        log_reference = np.full(shape, -np.inf)
        for row, prompt in enumerate(self.prompts):
            log_reference[row, : len(prompt.responses)] = np.log([response.reference for response in prompt.responses])
        limits = np.array(list(self.limits.values()), dtype=float)
        problem = finite_problem(self.groups(), log_reference, limits=limits, beta=self.beta)
        return replace(problem, prompt_weights=np.array([prompt.weight for prompt in self.prompts]))

    def groups(self) -> list[Group]:
        """Return one group a prompt, with all its responses; the prompt's id is its position in the world."""
        return [
            Group(
                prompt=Prompt(prompt.text, id=f"{position:06d}"),
                responses=tuple(
                    Response(response.text, log_prob=math.log(response.reference)) for response in prompt.responses
                ),
                reward=np.array([response.reward for response in prompt.responses]),
                costs=np.array([response.costs for response in prompt.responses]),
                weight=prompt.weight,
            )
            for position, prompt in enumerate(self.prompts)
        ]


def load_world(path: Path) -> World:
    """Return the world in ``path``.

    Raises:
        MissingError: the file cannot be read.
        DataError: anything in it that is not a world; the message names the place, what stands there and what should.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; a world is a JSON file") from error
    except OSError as error:
        raise MissingError(f"{path}: cannot be read ({error.strerror}); give the path of a world file") from error
    return parse_world(text, where=str(path))


def parse_world(text: str, *, where: str) -> World:
    """Return the world that the JSON ``text`` holds; ``where`` opens the messages.

    Raises:
        DataError: as ``load_world``.
    """
    try:
        raw = parse_json(text, constants=True)
        json.dumps(raw, ensure_ascii=False).encode()  # an escape can name half of a character
    except UnicodeEncodeError:
        raise DataError(f"{where}: a text holds half of a character (a lone surrogate)") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: line {error.lineno}: not JSON ({error.msg})") from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{where}: not a world: {error}") from error
    table = _table(raw, where, ("beta", "limits", "prompts"))
    beta = _positive(table["beta"], f"{where}: beta")
    limits = {
        name: _number(limit, f"{where}: limits.{name}")
        for name, limit in _checked(dict, table["limits"], f"{where}: limits").items()
    }
    if not limits:
        _refuse(f"{where}: limits", "at least one named limit", table["limits"])
    prompts = [
        _prompt(entry, f"{where}: prompts[{position}]", tuple(limits))
        for position, entry in enumerate(_checked(list, table["prompts"], f"{where}: prompts"))
    ]
    if not prompts:
        _refuse(f"{where}: prompts", "at least one prompt", [])
    _refuse_repeats((prompt.text for prompt in prompts), f"{where}: prompts", "prompt")
    shares = _shares([prompt.weight for prompt in prompts], f"{where}: prompts: the weights")
    return World(
        beta,
        limits,
        tuple(WorldPrompt(p.text, share, p.responses) for p, share in zip(prompts, shares, strict=True)),
    )


def _prompt(raw: Any, where: str, names: tuple[str, ...]) -> WorldPrompt:
    table = _table(raw, where, ("prompt", "responses"), optional=("weight",))
    text = _checked(str, table["prompt"], f"{where}.prompt")
    weight = _positive(table.get("weight", 1.0), f"{where}.weight")
    responses = [
        _response(entry, f"{where}.responses[{position}]", names)
        for position, entry in enumerate(_checked(list, table["responses"], f"{where}.responses"))
    ]
    if len(responses) < 2:
        _refuse(f"{where}.responses", "two responses or more", len(responses))
    _refuse_repeats((response.text for response in responses), f"{where}.responses", "response")
    shares = _shares([response.reference for response in responses], f"{where}.responses: the references")
    if min(shares) <= 0:
        _refuse(f"{where}.responses: the references", "probabilities that stay above 0 when they sum to 1", min(shares))
    return WorldPrompt(
        text,
        weight,
        tuple(WorldResponse(r.text, share, r.reward, r.costs) for r, share in zip(responses, shares, strict=True)),
    )


def _response(raw: Any, where: str, names: tuple[str, ...]) -> WorldResponse:
    table = _table(raw, where, ("response", "reference", "reward", "costs"))
    wanted = "a probability above 0 (leave out what the reference never says)"
    reference = _positive(table["reference"], f"{where}.reference", wanted)
    costs = _table(table["costs"], f"{where}.costs", names)
    return WorldResponse(
        text=_checked(str, table["response"], f"{where}.response"),
        reference=reference,
        reward=_number(table["reward"], f"{where}.reward"),
        costs=np.array([_number(costs[name], f"{where}.costs.{name}") for name in names]),
    )


def _refuse(where: str, wanted: str, given: object) -> NoReturn:
    raise DataError(f"{where}: must be {wanted}, got {reprlib.repr(given)}")


Kind = TypeVar("Kind", dict[str, Any], list[Any], str)


def _checked(kind: type[Kind], raw: Any, where: str) -> Kind:
    if not isinstance(raw, kind):
        _refuse(where, {dict: "an object", list: "a list", str: "a string"}[kind], raw)
    return raw


def _table(raw: Any, where: str, keys: tuple[str, ...], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    table = _checked(dict, raw, where)
    for key in table:
        if key not in keys + optional:
            raise DataError(f"{where}: unknown key {key!r}; {nearest(key, keys + optional)}")
    for key in keys:
        if key not in table:
            raise DataError(f"{where}: key {key!r} is missing; given: {', '.join(table) or 'none'}")
    return table


def _number(raw: Any, where: str) -> float:
    # Python counts True as the number 1; a file that says so made a mistake.
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        _refuse(where, "a number", raw)
    try:
        value = float(raw)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        _refuse(where, "a finite number", value)
    return value


def _positive(raw: Any, where: str, wanted: str = "a number above 0") -> float:
    value = _number(raw, where)
    if value <= 0:
        _refuse(where, wanted, value)
    return value


def _refuse_repeats(texts: Iterable[str], where: str, what: str) -> None:
    seen: dict[str, int] = {}
    for position, text in enumerate(texts):
        if text in seen:
            raise DataError(
                f"{where}[{position}]: the same {what} as [{seen[text]}], {text[:60]!r}; add their shares up into one"
            )
        seen[text] = position


def _shares(values: list[float], where: str) -> list[float]:
    total = math.fsum(value / max(values) for value in values) if max(values) > 0 else 0.0
    if not total > 0:
        _refuse(where, "positive in sum", total)
    return [value / max(values) / total for value in values]
