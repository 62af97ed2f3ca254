"""One writer per run directory."""

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
