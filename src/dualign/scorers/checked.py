"""The check that every scorer runs behind, and the scorer that is a function of somebody else's code."""

import importlib
import inspect
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dualign.errors import ConfigError, MissingError, ScorerError, nearest
from dualign.hashing import digest, file_digest
from dualign.protocols import Direction, Scorer, words_read
from dualign.records import FloatArray, Prompt, named
from dualign.scorers.spec import FunctionScorer, ScorerSpec, Setting, revision_of


class CheckedScorer(FunctionScorer):
    """A scorer whose answers are verified before anybody sees them: one finite number a response."""

    __slots__ = ()


def checked(scorer: Scorer, *, shown: Callable[[str], str] | None = None) -> CheckedScorer:
    """Return ``scorer`` behind the check; one that is checked already is not checked twice.

    Args:
        scorer: what is asked.
        shown: what is scored of a response, where that is not all of it; it is no part of the scorer's revision.
    """
    if isinstance(scorer, CheckedScorer):
        if shown is None:
            return scorer
        (scorer,) = scorer.inner
    verified = partial(_verified, scorer, shown)
    return CheckedScorer(scorer.id, scorer.direction, scorer.revision, verified, words_read(scorer), (scorer,))


def _verified(
    scorer: Scorer, shown: Callable[[str], str] | None, prompts: Sequence[Prompt], responses: Sequence[str]
) -> FloatArray:
    """Return shape ``[response]`` finite scores.

    Raises:
        ScorerError: the answer has another shape, holds no numbers, or one of them is not finite.
        ValueError: ``prompts`` and ``responses`` are not parallel.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts for {len(responses)} responses; they must be parallel")
    if not responses:
        return np.zeros(0)
    answer = scorer(prompts, responses if shown is None else [shown(response) for response in responses])
    try:
        scores = np.asarray(answer, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ScorerError(f"scorer {scorer.id}: did not return numbers ({error})") from error
    if scores.shape != (len(responses),):
        raise ScorerError(
            f"scorer {scorer.id}: returned shape {list(scores.shape)} for {len(responses)} responses; "
            f"[{len(responses)}] is needed"
        )
    wrong = np.flatnonzero(~np.isfinite(scores))
    if wrong.size:
        index = int(wrong[0])
        raise ScorerError(
            f"scorer {scorer.id}: {scores[index]} for prompt {index} ({named(prompts[index])}); "
            f"{wrong.size} of {len(responses)} scores are not finite"
        )
    return scores


OPENING, CLOSING = "<think>", "</think>"
_BLOCK = re.compile(f"{OPENING}.*?(?:{CLOSING}|\\Z)", re.DOTALL)


def without_reasoning(text: str, *, opened: bool = False) -> str:
    """Return ``text`` without its ``<think>…</think>`` parts; one that is not closed reaches to the end.

    What stands outside of them is kept, before and behind: an answer cannot hide its first words from a scorer. A
    closing tag that nothing in the text opens was opened by the prompt; ``opened`` says that the prompt always does.
    """
    first_close, first_open = text.find(CLOSING), text.find(OPENING)
    if first_close >= 0 and not 0 <= first_open < first_close:
        text = text[first_close + len(CLOSING) :].lstrip()
    elif opened and first_close < 0:
        return ""
    left = _BLOCK.sub("", text)
    return left.lstrip() if text.lstrip().startswith(OPENING) else left


TERMINATED = 128 + signal.SIGTERM
"""What the command line exits with when it is told to end; it reaches a callable as ``SystemExit``."""


class CallableSpec(ScorerSpec):
    """Keys of ``kind: callable``."""

    target: str
    """``module:attribute``; the module must be importable: installed, or in a folder of ``PYTHONPATH``."""
    version: str = ""
    """Change it when the numbers change for a reason outside the module's source (a service, a data file)."""


def _calling(
    function: Callable[[list[str], list[str]], Any], id: str, direction: Direction, revision: str
) -> FunctionScorer:
    """Return the scorer that calls ``function`` with texts; what that raises is the cause of a ``ScorerError``."""

    def scores(prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        with _failing(f"scorer {id}:"):
            found: FloatArray = function([prompt.text for prompt in prompts], list(responses))
        return found

    return FunctionScorer(id, direction, revision, scores)


def function_scorer(
    function: Callable[[list[str], list[str]], Any], *, direction: Direction, version: str = ""
) -> FunctionScorer:
    """Return the scorer that calls ``function`` with the texts of prompts and responses, two lists of one length.

    Its revision is a hash of the function's name, its source where Python can read that, ``version``, and the plain
    values that it carries: of a closure, of defaults, of a ``functools.partial``, of an object's own attributes. Change
    the version where the numbers change for another reason: a service, a file, a model, what it calls.
    """
    inner: Any = function
    carried: list[Any] = []
    while isinstance(inner, partial):
        carried += [*inner.args, sorted(inner.keywords.items())]
        inner = inner.func
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    name = f"{named.__module__}:{named.__qualname__}"
    owner = getattr(inner, "__self__", None if named is inner else inner)
    code = getattr(inner, "__code__", None)
    carried += [
        [] if inspect.ismodule(owner) else sorted(getattr(owner, "__dict__", {}).items()),
        getattr(inner, "__defaults__", None),
        [cell.cell_contents for cell in getattr(inner, "__closure__", None) or ()],
        # Two lambdas of one line have one name and one source; they end at different columns.
        max((end for *_, end in code.co_positions() if end), default=0) if code else 0,
    ]
    try:
        source = inspect.getsource(named)
    except (OSError, TypeError):
        source = ""
    revision = revision_of(kind="function", name=name, version=version, source=digest(source), carried=_told(carried))
    return _calling(function, name, direction, revision)


def _told(value: Any) -> Any:
    """Return plain values as they are written, and of all others their type alone."""
    if isinstance(value, list | tuple):
        return [_told(item) for item in value]
    return repr(value) if isinstance(value, str | int | float | None) else type(value).__qualname__


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Turn whatever a user's code raises into one line that starts with ``what``; a signal to end passes.

    Raises:
        ScorerError: the code raised; its own error is the cause.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == TERMINATED:
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
        raise ScorerError(f"{what} raised {reason}") from error


def load(target: str) -> Callable[[list[str], list[str]], Any]:
    """Return the callable that ``module:attribute`` names.

    Raises:
        ConfigError: the name has another form, or the module has no such callable.
        MissingError: the module cannot be imported.
        ScorerError: the module raised while it was imported.
    """
    module_name, colon, attribute = target.partition(":")
    if not colon or not all(module_name.split(".")) or not attribute.isidentifier():
        raise ConfigError(f"scorer callable: {target!r} is no callable's name; 'module:attribute' is needed")
    members = vars(_imported(module_name))
    if attribute not in members:
        public = [name for name, value in members.items() if callable(value) and not name.startswith("_")]
        raise ConfigError(f"scorer callable: {module_name!r} has no {attribute!r}; {nearest(attribute, public)}")
    found = members[attribute]
    if not callable(found):
        raise ConfigError(f"scorer callable: {target!r} is {type(found).__name__}, no callable")
    function: Callable[[list[str], list[str]], Any] = found
    return function


def _imported(name: str) -> ModuleType:
    try:
        with _failing(f"scorer callable: importing {name!r}"):
            return importlib.import_module(name)
    except ScorerError as failure:
        cause = failure.__cause__
        if not isinstance(cause, ImportError):
            raise
        raise MissingError(
            f"scorer callable: cannot import {name!r} ({cause}); install it, or name its folder in PYTHONPATH"
        ) from cause


def build(spec: CallableSpec, setting: Setting) -> FunctionScorer:
    """Return the scorer that ``spec`` describes; its revision follows the source of the whole module."""
    function = load(spec.target)
    path = getattr(inspect.getmodule(function), "__file__", None)
    source = file_digest(Path(path)) if path is not None and Path(path).is_file() else ""
    revision = revision_of(kind="callable", target=spec.target, version=spec.version, source=source)
    return _calling(function, spec.target, setting.direction, revision)
