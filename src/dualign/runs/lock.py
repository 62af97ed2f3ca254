"""One writer per run directory.

The kernel's lock on the file ``LOCK`` decides, so it ends with the process that holds it however that
process ends. Its holder is written into the file (process id, boot, host) to be named to whom it refuses,
and to recognise a stale one where the kernel's lock outlived its owner or the file system has none.
"""

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dualign.errors import LockedError, StorageError
from dualign.runs.store import LOCK, disk, parse_object

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NO_KERNEL_LOCK = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
_ATTEMPTS = 20


@contextlib.contextmanager
def run_lock(run: Path) -> Iterator[Path]:
    """Hold the run directory ``run`` (made if absent) for this process alone; gives its path.

    Raises:
        LockedError: a live process holds it; the message names the process.
        StorageError: the directory or the lock file cannot be written.
    """
    if fcntl is not None:
        with disk(run, "lock"):
            run.mkdir(parents=True, exist_ok=True)
    with file_lock(run / LOCK):
        yield run


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` for this process alone.

    Raises:
        LockedError: a live process holds it; the message names the process.
        StorageError: the lock file cannot be written, or this system has no such locks.
    """
    if fcntl is None:
        raise StorageError(f"{path}: this system has no file locks (fcntl); on Windows use WSL, and dualign inside it")
    with disk(path, "lock"):
        descriptor = _acquire(path)
    try:
        yield
    finally:
        if _is_at(descriptor, path):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """Return an open descriptor of the lock file that this process now holds."""
    for _ in range(_ATTEMPTS):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _hold(descriptor, path)
        except BaseException:
            os.close(descriptor)
            raise
        # the name may meanwhile point to another file: the last holder removes its own when it leaves
        if _is_at(descriptor, path):
            _sign(descriptor)
            return descriptor
        os.close(descriptor)
    raise LockedError(f"{path.parent}: other processes keep taking the lock; try again")


def _hold(descriptor: int, path: Path) -> None:
    """Take the kernel's lock, or judge by the signature where the kernel cannot tell."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        blocked = isinstance(error, BlockingIOError)
        if not blocked and error.errno not in _NO_KERNEL_LOCK:
            raise
        holder = parse_object(os.pread(descriptor, 4096, 0)) or {}
        alive = not is_stale(holder) if holder else blocked
        if alive and (blocked or holder.get("pid") != os.getpid()):
            raise LockedError(_refusal(path, holder)) from None
        if blocked:
            # its owner is gone but a forked child still holds the kernel's lock: leave that file to it
            path.unlink(missing_ok=True)


def is_stale(holder: Mapping[str, Any]) -> bool:
    """Return whether the signed ``holder`` can no longer be running: an earlier boot, or a dead process here.

    A holder on another host is never called stale: nothing here can tell.
    """
    if holder.get("host") != socket.gethostname():
        return False
    pid = holder.get("pid")
    if holder.get("boot") != boot_id() or not isinstance(pid, int) or pid <= 0:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def boot_id() -> str:
    """Return what names this start of the machine; empty where the system does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _refusal(path: Path, holder: Mapping[str, Any]) -> str:
    who = f"process {holder['pid']} on {holder.get('host')}" if holder.get("pid") else "another process"
    if path.name != LOCK:
        return f"{path}: {who} holds it; wait for it"
    return f"{path.parent}: {who} writes this run directory; wait for it, or choose another --out"


def _sign(descriptor: int) -> None:
    signature = {"pid": os.getpid(), "boot": boot_id(), "host": socket.gethostname()}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(signature).encode(), 0)
    os.fsync(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether ``path`` still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
