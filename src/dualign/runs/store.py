"""Files that are whole or absent, and a manifest that notices when one was altered.

A write goes to a temporary name beside its target, is flushed to the disk, renamed over the target, and the
folder is flushed: a reader sees the old bytes or the new ones, never a part. Inside a run directory the
SHA-256 of every file stands in ``MANIFEST.json``; pass ``run=`` to have a write recorded or a read checked.
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dualign.errors import DataError, MissingError, StorageError
from dualign.hashing import canonical_digest, digest, file_digest, plain
from dualign.strict import parse_json

MANIFEST = "MANIFEST.json"
LOCK = "LOCK"
STATE = "state.json"
PREVIOUS_STATE = "state.json.previous"
EVENTS = "events.jsonl"
UNHASHED = frozenset({MANIFEST, LOCK, STATE, PREVIOUS_STATE, EVENTS})
"""Files that change while a run goes on; the state carries its own checksum instead."""
TEMPORARY = ".tmp-"
PARTIAL = ".partial-"
REPLACED = ".replaced-"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Fault:
    """One file of a run directory that is not as the manifest says."""

    path: str
    """Relative to the run directory, with forward slashes."""
    kind: str
    """``damaged``, ``missing`` or ``unlisted``."""

    def __str__(self) -> str:
        return f"{self.path} is {self.kind}"


@contextlib.contextmanager
def disk(path: Path, doing: str) -> Iterator[None]:
    """Turn what the operating system refuses about ``path`` into one line.

    Raises:
        StorageError: the disk is full, read-only, or fails in another way.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: cannot {doing}: {error.strerror or error}") from error


def sync_folder(folder: Path) -> None:
    """Flush the entries of ``folder``, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes, *, run: Path | None = None) -> Path:
    """Return ``path`` once it holds ``content`` on the disk; with ``run``, its hash is in the manifest too.

    Raises:
        StorageError: the disk refused; what was at ``path`` before is still there.
    """
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{path.name}")
    with disk(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_and_flush(temporary, content)
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    if run is not None:
        record(run, {relative(run, path): digest(content)})
    return path


def _write_and_flush(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, *, run: Path | None = None) -> Path:
    """Return ``path`` once it holds ``text`` in UTF-8; see ``write_bytes``."""
    return write_bytes(path, text.encode("utf-8", errors="replace"), run=run)


def write_json(path: Path, value: object, *, run: Path | None = None) -> Path:
    """Return ``path`` once it holds ``value`` as JSON; see ``write_bytes``.

    Arrays become lists, paths strings, data classes objects, and a figure that is not finite becomes null.
    """
    text = json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    return write_text(path, text + "\n", run=run)


def write_signed(path: Path, body: Mapping[str, Any]) -> Path:
    """Return ``path`` once it holds the JSON object ``body`` and its own checksum; see ``write_bytes``."""
    return write_json(path, {**body, "sha256": canonical_digest(body)})


def write_table(path: Path, columns: Mapping[str, Sequence[Any]], *, run: Path | None = None) -> Path:
    """Return ``path`` once it holds the named ``columns`` (of equal length) as Parquet; see ``write_bytes``."""
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), sink, compression="zstd")
    return write_bytes(path, sink.getvalue().to_pybytes(), run=run)


def read_bytes(path: Path, *, run: Path | None = None) -> bytes:
    """Return the bytes of ``path``; with ``run``, only if they are those of the manifest.

    Raises:
        MissingError: there is no such file, or it cannot be read.
        DataError: its bytes are not those that the run wrote, or the manifest does not list it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MissingError(f"{path}: cannot read: {error.strerror or error}") from error
    if run is not None:
        name = relative(run, path)
        listed = read_manifest(run).get(name)
        if listed is None:
            raise DataError(f"{run}: {name} is not listed in {MANIFEST}: it was not written by this run")
        if digest(content) != listed:
            raise DataError(f"{run}: {name} is damaged: its bytes are not those that the run wrote")
    return content


def read_text(path: Path, *, run: Path | None = None) -> str:
    """Return the text of ``path`` (UTF-8); see ``read_bytes``."""
    try:
        return read_bytes(path, run=run).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from None


def read_json(path: Path, *, run: Path | None = None) -> Any:
    """Return the value of the JSON file ``path``; see ``read_bytes``."""
    try:
        return parse_json(read_text(path, run=run), constants=True)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None


def parse_object(content: bytes) -> dict[str, Any] | None:
    """Return the JSON object in ``content``; None where it is torn, or something else."""
    try:
        value = parse_json(content, constants=True)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def read_signed(path: Path) -> dict[str, Any] | None:
    """Return what ``write_signed`` wrote; None where the file is absent, torn or altered."""
    try:
        body = parse_object(path.read_bytes())
    except OSError:
        return None
    return body if body is not None and body.pop("sha256", None) == canonical_digest(body) else None


def read_table(path: Path, *, run: Path | None = None) -> dict[str, list[Any]]:
    """Return the columns of the Parquet file ``path`` by name; see ``read_bytes``."""
    content = read_bytes(path, run=run)
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet table ({str(error).splitlines()[0]})") from None
    return {name: table.column(name).to_pylist() for name in table.column_names}


def relative(run: Path, path: Path) -> str:
    """Return the name of ``path`` in the manifest of ``run``: relative, with forward slashes."""
    try:
        return path.absolute().relative_to(run.absolute()).as_posix()
    except ValueError:
        raise ValueError(f"{path} is not inside the run directory {run}") from None


def read_manifest(run: Path) -> dict[str, str]:
    """Return the SHA-256 by relative name of every file of ``run``; empty where there is no manifest yet.

    Raises:
        DataError: the manifest is damaged, or names a file outside the run directory.
    """
    path = run / MANIFEST
    if not path.exists():
        return {}
    files = (parse_object(read_bytes(path)) or {}).get("files")
    if not isinstance(files, dict):
        raise DataError(f"{path}: damaged: not the manifest of a run")
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise DataError(f"{path}: names {name!r}, which lies outside the run directory")
    return {name: str(sha256) for name, sha256 in files.items()}


def record(run: Path, digests: Mapping[str, str], *, forget: str | None = None) -> None:
    """Put ``digests`` (by relative name) into the manifest of ``run``, after dropping all under ``forget``."""
    kept = {n: d for n, d in read_manifest(run).items() if forget is None or not n.startswith(f"{forget}/")}
    write_manifest(run, {**kept, **digests})


def write_manifest(run: Path, entries: Mapping[str, str]) -> None:
    """Replace the manifest of ``run`` by ``entries``."""
    write_json(run / MANIFEST, {"schema": SCHEMA, "files": dict(sorted(entries.items()))})


def verify(run: Path) -> list[Fault]:
    """Return every file of ``run`` that is damaged, missing or unlisted; empty when all is as written.

    Work folders of unfinished phases and temporary files are no part of the record.

    Raises:
        MissingError: ``run`` is not a run directory.
        DataError: the manifest itself is damaged.
    """
    if not (run / MANIFEST).is_file():
        raise MissingError(f"{run}: not a run directory: it holds no {MANIFEST}")
    listed = read_manifest(run)
    faults = []
    for name, sha256 in listed.items():
        path = run / name
        if not path.exists():
            faults.append(Fault(name, "missing"))
        elif path.is_symlink() or not path.is_file() or file_digest(path) != sha256:
            faults.append(Fault(name, "damaged"))
    present = {path.relative_to(run).as_posix() for path in run.rglob("*") if not path.is_dir()}
    unlisted = {name for name in present - set(listed) - UNHASHED if not is_transient(name)}
    return faults + [Fault(name, "unlisted") for name in sorted(unlisted)]


def is_transient(name: str) -> bool:
    """Return whether a relative name is that of a temporary file or lies in an unfinished work folder."""
    return any(part.startswith(TEMPORARY) or PARTIAL in part or REPLACED in part for part in PurePosixPath(name).parts)


def remove_folder(folder: Path) -> None:
    """Remove ``folder`` and all below it, if it is there."""
    with disk(folder, "remove"):
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)
