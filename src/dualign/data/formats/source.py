"""From what the user names (a file, a folder, a pinned data set of the Hub) to one file on this machine."""

import re
from collections.abc import Iterable
from pathlib import Path

from dualign.data.sources.table import READERS, ending
from dualign.errors import MissingError

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
