"""Every hash of the toolkit: SHA-256 over text, values, files and folders. A leaf.

Equal content gives equal digests on every machine; digests are hexadecimal, and the first 16 digits are a short name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from dualign.errors import MissingError

WHOLE_HASH_BYTES = 1 << 30
"""Files up to this size are hashed whole by ``file_identity``."""
_BLOCK = 1 << 20
_BLOCKS = 256


def digest(*parts: str | bytes) -> str:
    """Return the SHA-256 of ``parts``, one after the other, in hexadecimal; halves of characters count as they are."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)
    return found.hexdigest()


def canonical_digest(value: object) -> str:
    """Return the SHA-256 of ``value`` as JSON with sorted keys: equal content, equal digest."""
    return digest(json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every plain file below ``folder`` by relative name, in order."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}


def file_identity(path: Path) -> bytes:
    """Return the SHA-256 of a file; above ``WHOLE_HASH_BYTES``, of its size, its first block and evenly spaced ones.

    Raises:
        MissingError: the file cannot be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            if size <= WHOLE_HASH_BYTES:
                return hashlib.file_digest(stream, "sha256").digest()
            found = hashlib.sha256(str(size).encode())
            for block in range(_BLOCKS):
                stream.seek(block * (size - _BLOCK) // (_BLOCKS - 1))
                found.update(stream.read(_BLOCK))
            return found.digest()
    except OSError as error:
        raise MissingError(f"{path}: cannot be read ({error.strerror or error})") from error


def files_identity(paths: Iterable[Path]) -> str:
    """Return 16 hexadecimal digits over the names and identities of those of ``paths`` that are files, in order."""
    return digest(*(path.name.encode() + b"\0" + file_identity(path) for path in paths if path.is_file()))[:16]


def plain(value: object) -> Any:
    """Return ``value`` in the types of JSON: arrays as lists, figures that are not finite as None.

    Raises:
        TypeError: it holds something that has no JSON form.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")
