"""One writer per run directory."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dualign.errors import LockedError
from dualign.runs.lock import boot_id, is_stale, run_lock

HOLD = """
import sys, time
from pathlib import Path
from dualign.runs.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(run: Path) -> "subprocess.Popen[str]":
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_a_live_writer_is_named_and_a_killed_one_is_taken_over(tmp_path: Path) -> None:
    run = tmp_path / "run"
    child = holder(run)
    with child:
        with pytest.raises(LockedError, match=f"process {child.pid} on {socket.gethostname()}"), run_lock(run):
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert (run / "LOCK").exists()
        with run_lock(run):
            assert json.loads((run / "LOCK").read_text())["pid"] == os.getpid()
    assert not (run / "LOCK").exists()


def test_a_lock_of_an_earlier_boot_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "LOCK").write_text(json.dumps({"pid": 1, "boot": "earlier", "host": socket.gethostname()}))
    with run_lock(tmp_path):
        assert json.loads((tmp_path / "LOCK").read_text())["pid"] == os.getpid()


def test_a_second_lock_in_one_process_is_refused(tmp_path: Path) -> None:
    with run_lock(tmp_path), pytest.raises(LockedError, match=str(os.getpid())), run_lock(tmp_path):
        pass


def test_who_is_stale() -> None:
    here = {"boot": boot_id(), "host": socket.gethostname()}
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert not is_stale({**here, "pid": os.getpid()})
    assert is_stale({**here, "pid": dead.pid})
    assert is_stale({**here, "pid": os.getpid(), "boot": "earlier"})
    assert not is_stale({**here, "pid": dead.pid, "host": "elsewhere"}), "nothing here can tell"


def left_by(folder: Path, **holder: object) -> None:
    (folder / "LOCK").write_text(json.dumps({"boot": boot_id(), "host": socket.gethostname(), **holder}))


def dead() -> int:
    """Return the id of a process that is no more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_on_the_file_that_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kernel, taken = tmp_path / "LOCK", fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        """The holder leaves, and removes its file, between our opening it and our locking it."""
        if not taken:
            path.unlink()
        taken.append(descriptor)
        kernel(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with run_lock(tmp_path):
        assert len(taken) == 2
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(LockedError), run_lock(tmp_path):
            pass


def test_a_lock_of_another_is_left_in_place(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        (tmp_path / "LOCK").unlink()
        (tmp_path / "LOCK").write_text("of another")
    assert (tmp_path / "LOCK").read_text() == "of another"


def test_where_the_kernel_has_no_locks_the_signature_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    left_by(tmp_path, pid=os.getppid())
    with pytest.raises(LockedError, match=f"process {os.getppid()} on"), run_lock(tmp_path):
        pass
    for pid in (os.getpid(), dead()):
        left_by(tmp_path, pid=pid)
        with run_lock(tmp_path):
            assert json.loads((tmp_path / "LOCK").read_text())["pid"] == os.getpid()


def test_a_child_that_outlives_its_parent_holds_the_old_file_and_not_the_run(tmp_path: Path) -> None:
    """A forked child keeps the kernel's lock when the process that signed it is gone."""
    left_by(tmp_path, pid=dead())
    with (tmp_path / "LOCK").open() as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        with run_lock(tmp_path):
            assert json.loads((tmp_path / "LOCK").read_text())["pid"] == os.getpid()


def test_a_lock_that_cannot_be_told_apart_is_respected(tmp_path: Path) -> None:
    (tmp_path / "LOCK").write_text("{torn")
    with (tmp_path / "LOCK").open() as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="another process writes this run directory"), run_lock(tmp_path):
            pass
