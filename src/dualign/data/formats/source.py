"""What reading a preference file can find wrong, and the errors that say so."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

from dualign.data.preferences import Answer, Fault, PreferenceRow
from dualign.data.table_files import READERS, encodable, ending
from dualign.errors import DataError, MissingError
from dualign.records import Prompt

READING_RULES = {
    "missing column": "error",
    "refused format": "error",
    "no common prompt": "error",
    "several prompts": "error",
    "no readable row": "error",
    "mixed label types": "error",
    "id out of range": "error",
    "score not a number": "error",
    "not a text": "drop",
    "mixed plain and chat": "drop",
    "lone surrogate": "drop",
    "wrong role": "drop",
    "tool turn": "drop",
    "image or sound": "drop",
    "empty prompt": "drop",
    "empty response": "drop",
    "parting transcripts": "drop",
    "identical pair": "drop",
}
"""Rules that the reader itself applies: ``error`` refuses the file, ``drop`` leaves the row out and counts it.

What is wrong with the words of one row is that row's own fault; what is wrong with a label makes its column doubtful.
"""
UNREADABLE = frozenset(
    {"not a text", "mixed plain and chat", "lone surrogate", "wrong role", "tool turn", "image or sound"}
)
"""Drops that say, where no row at all is left, that the file is none that can be read: ``no readable row``."""


class RowError(Exception):
    """One row breaks a rule of the reader, which adds the file and the line."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(what)
        self.rule = rule
        self.what = what


class PreferenceError(DataError):
    """A preference file that cannot be used.

    ``faults`` holds every row that is to blame, ``format`` the name of the file's format; empty: none was recognised.
    """

    def __init__(self, message: str, faults: tuple[Fault, ...], format: str = "") -> None:
        super().__init__(message)
        self.faults = faults
        self.format = format


def refusal(where: str, faults: tuple[Fault, ...], format: str = "") -> PreferenceError:
    """Return the error of a file with these faults: the first one in words, the others as a number."""
    first = faults[0]
    others = f" (and {len(faults) - 1} more rows)" if len(faults) > 1 else ""
    return PreferenceError(f"{where}: line {first.line}: {first.what}{others}", faults, format)


Values = Mapping[str, Any]
LARGEST_SEVERITY = 100  # the known scales end at 3; anything far beyond is another quantity


def given(values: Values, name: str) -> str:
    """Return a cell in a few words; containers by their kind alone, since their text can be deep and long."""
    value = values.get(name)
    if value is None:
        return "null" if name in values else "missing"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return "an object"
    return repr(value[:40] if isinstance(value, str | bytes) else value)[:60]


def refuse(rule: str, values: Values, name: str, needed: str) -> NoReturn:
    """Raise the error of one cell; a row without the column at all breaks another rule."""
    raise RowError(rule if name in values else "missing column", f"{name} is {given(values, name)}; {needed} is needed")


def text(values: Values, name: str) -> str:
    """Return a text; it may be blank, which ``rows.made`` sees to."""
    value = values.get(name)
    if isinstance(value, list):
        refuse("mixed plain and chat", values, name, "a text as in the other rows")
    if not isinstance(value, str):
        raise RowError("not a text", f"{name} is {given(values, name)}; a text is needed")
    if not encodable(value):
        raise RowError("lone surrogate", f"{name} holds half of a character (a lone surrogate)")
    return value


def flag(values: Values, name: str) -> bool:
    """Return true or false; neither 0 and 1 nor words count as such."""
    value = values.get(name)
    if not isinstance(value, bool):
        refuse("mixed label types", values, name, "true or false")
    return value


def position(values: Values, name: str, *, first: int = 0, count: int = 2) -> int:
    """Return the 0-based position of an answer whose ids in the file count from ``first``."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        refuse("mixed label types", values, name, f"a whole number from {first} to {first + count - 1}")
    if not first <= value < first + count:
        refuse("id out of range", values, name, f"a whole number from {first} to {first + count - 1}")
    return value - first


def severity(values: Values, name: str) -> int | None:
    """Return a level of harm, 0 = safe; none where the row says nothing."""
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_SEVERITY:
        refuse("mixed label types", values, name, "a level of harm, 0 (safe) or more,")
    return value


def categories(values: Values, name: str) -> frozenset[str]:
    """Return the names of a struct of flags that are true, or of a list of names; empty where nothing is said."""
    value = values.get(name)
    if value is None:
        return frozenset()
    if isinstance(value, Mapping) and all(mark is None or isinstance(mark, bool) for mark in value.values()):
        names = [str(key) for key, mark in value.items() if mark]
    elif isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        names = value
    else:
        refuse("mixed label types", values, name, "an object of true and false by category")
    if not all(encodable(category) for category in names):
        raise RowError("lone surrogate", f"{name} holds half of a character (a lone surrogate)")
    return frozenset(names)


def score(values: Values, name: str) -> float:
    """Return a finite number; a list of one counts as its number."""
    value = values.get(name)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        refuse("score not a number", values, name, "one finite number")
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond 1e308
        number = math.inf
    if not math.isfinite(number):
        refuse("score not a number", values, name, "one finite number")
    return number


def unpacked(values: Values, name: str) -> Any:
    """Return a cell, or the list or object that its text holds as JSON."""
    value = values.get(name)
    return literal(value) if isinstance(value, str) and value.lstrip().startswith(("[", "{")) else value


def literal(cell: str) -> Any:
    """Return what the text of a label stands for in a file that holds texts alone: a flag, number, object or none."""
    words = {"true": True, "false": False, "": None, "null": None, "none": None}
    bare = cell.strip().lower()
    if bare in words:
        return words[bare]
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell


RowReading = Callable[[Values, int], PreferenceRow | Fault]
SYSTEM = ("system", "system_prompt", "system_message")
"""Columns that hold a system turn, whatever the format; the first that says anything counts."""


def any_rows(_rows: Sequence[Values]) -> bool:
    """Return true: the columns alone tell this format from the others."""
    return True


@dataclass(frozen=True, slots=True)
class Format:
    """One format of preference files."""

    name: str
    says: str
    """What the file then holds, in a few words."""
    needs: tuple[str, ...]
    """Columns that some row must have."""
    read_row: RowReading
    """From the cells of one row and its line; raises ``RowError``."""
    recognise: Callable[[Sequence[Values]], bool] = any_rows
    """Whether rows that have the needed columns are of this format."""
    options: tuple[str, ...] = ()
    """Further columns that are read where they are there."""
    more: re.Pattern[str] | None = None
    """Names of further columns that are read."""
    texts: tuple[str, ...] = ()
    """Columns that hold texts alone; in CSV columns of labels hold a flag, a number or JSON."""
    either: tuple[str, ...] = ()
    """Columns that hold texts in one file and messages in another, but never both in one."""
    systems: bool = True
    """Whether a column of a system turn is read as that turn; false: the format has a place of its own for it."""
    refusal: str = ""
    """Why files of this format are refused, and what to use instead; empty: they are read."""

    def reads(self, name: str) -> bool:
        """Return whether the format reads a column; those it does not read become columns of the prompt."""
        own = name in self.needs or name in self.options or bool(self.more and self.more.fullmatch(name))
        return own or (self.systems and name in SYSTEM)

    def labels(self, name: str) -> bool:
        """Return whether a column holds a label: read, and no text, so that CSV's texts stand for something else."""
        return self.reads(name) and name not in (*self.texts, *self.either, *SYSTEM)


def made(
    line: int, prompt: Prompt, answers: Sequence[Answer], *, better: int | None = None, safer: int | None = None
) -> PreferenceRow | Fault:
    """Return the row, or the fault of a row in which the prompt or an answer is blank."""
    if not prompt.text.strip():
        return Fault("empty prompt", line, "the prompt is blank")
    for number, answer in enumerate(answers, start=1):
        if not answer.text.strip():
            return Fault("empty response", line, f"answer {number} of {len(answers)} is blank")
    return PreferenceRow(line, prompt, tuple(answers), better, safer)


def refused(_values: Values, line: int) -> Fault:
    """Return the fault of a row whose format is refused as a whole."""
    return Fault("refused format", line, "rows of this format are not read")


PINNED = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)@(?P<revision>[\w.-]+)(?:/(?P<file>.+))?")
UNPINNED = re.compile(r"[\w-][\w.-]*/[\w-][\w-]*")


def local_file(given: str | Path) -> Path:
    """Return the file that ``given`` stands for.

    A folder stands for the one data file in it. ``org/name@revision`` (``/file`` may follow) stands for a data set of
    the Hub that is in the local cache already; nothing is ever downloaded here.

    Raises:
        MissingError: there is no such file, a folder holds none or several, or the cache has no such data set.
    """
    path = Path(given)
    try:
        folder, there = path.is_dir(), path.exists()
    except OSError:  # no right to look, or no possible name: the reader says which
        return path
    if folder:
        return _only_file(path, str(given))
    pinned = PINNED.fullmatch(str(given))
    if there or (pinned is None and not UNPINNED.fullmatch(str(given))):
        return path
    if pinned is None:
        raise MissingError(
            f"{given}: no such file; a data set of the Hub needs its revision ({given}@COMMIT), or name a local path"
        )
    snapshot = _cached(pinned["name"], pinned["revision"], str(given))
    return snapshot / pinned["file"] if pinned["file"] else _only_file(snapshot, str(given))


def _cached(name: str, revision: str, given: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
    except (OSError, ValueError):  # not in the cache, or no valid name
        raise MissingError(
            f"{given}: the local cache has no data set {name!r} at {revision!r}; download it and name a local path"
        ) from None


def _only_file(folder: Path, given: str) -> Path:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _holds_data(path, folder)]
    if len(files) == 1:
        return files[0]
    if not files:
        raise MissingError(f"{given}: the folder holds no data file; known endings: {', '.join(READERS)}")
    raise MissingError(f"{given}: the folder holds {len(files)} data files; name one: {_some(files, folder)}")


def _holds_data(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and ending(path) in READERS and ending(path) != ".txt"


def _some(files: Iterable[Path], folder: Path) -> str:
    names = [str(path.relative_to(folder)) for path in files]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
