"""SIGKILL at random instants, then the same command: the same bytes as the uninterrupted run."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dualign.runs import store
from dualign.runs.journal import open_run

PROGRAM = """
import sys, time
from pathlib import Path
from dualign.runs import store
from dualign.runs.journal import open_run
from dualign.runs.lock import run_lock

def fit(folder, value):
    (folder / "checkpoint").mkdir(exist_ok=True)
    done = folder / "checkpoint" / "steps.json"
    steps = store.read_json(done) if done.exists() else []
    while len(steps) < 6:
        time.sleep(0.004)
        steps.append((value * 31 + len(steps)) % 97)
        store.write_json(done, steps)
    store.write_json(folder / "adapter.json", steps)
    store.write_bytes(folder / "weights.bin", bytes(steps) * 2000)
    return sum(steps)

def load(folder):
    return sum(store.read_json(folder / "adapter.json"))

run = Path(sys.argv[1])
with run_lock(run):
    print("up", flush=True)
    journal = open_run(run, {"seed": 7})
    value = journal.choice("start", lambda: 5)
    for index in range(5):
        inputs = {"value": value}
        value = journal.phase(f"fit {index}", inputs, lambda f: fit(f, value), load, target=f"rounds/{index:02d}")
    store.write_json(run / "result.json", {"value": value}, run=run)
"""


def contents(run: Path) -> dict[str, bytes]:
    """Return the bytes of every file but the events, which hold times, and the state before the last."""
    unlike = {store.EVENTS, store.PREVIOUS_STATE}
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in unlike}


def killed(run: Path, seconds: float) -> bool:
    """Start the program, kill it ``seconds`` after it came up; return whether it was still running."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(run)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(seconds)
        child.kill()
        return child.wait() != 0


def test_ten_of_ten_killed_runs_end_with_the_same_bytes(tmp_path: Path) -> None:
    start = time.perf_counter()
    whole = tmp_path / "whole"
    subprocess.run([sys.executable, "-c", PROGRAM, str(whole)], check=True, capture_output=True)
    lasting = time.perf_counter() - start
    expected, generator, kills = contents(whole), random.Random(20240305), 0
    for index in range(10):
        run = tmp_path / f"run-{index}"
        for _ in range(2):
            kills += killed(run, generator.uniform(0.0, 0.6 * lasting))
        subprocess.run([sys.executable, "-c", PROGRAM, str(run)], check=True, capture_output=True)
        assert contents(run) == expected
        assert store.verify(run) == []
    assert kills >= 5, "most kills must come while the program is at work"


@pytest.mark.parametrize("stop", ["rename", "replace"])
def test_a_kill_at_each_rename_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    """Stops before the n-th rename of a file or folder, for every n that occurs, and goes on."""
    method, calls = getattr(Path, stop), 0

    def act(folder: Path) -> int:
        nonlocal calls
        calls += 1
        store.write_text(folder / "x", "y")
        return 1

    def job(run: Path) -> None:
        journal = open_run(run, {"seed": 1})
        for name in ("a", "b"):
            journal.phase(name, {}, act, lambda folder: len(store.read_text(folder / "x")), target=name)

    for position in range(40):
        left = position

        def until(self: Path, target: Path) -> Path:
            nonlocal left
            if left == 0:
                raise SystemExit("killed")
            left -= 1
            return Path(method(self, target))

        run = tmp_path / str(position)
        with monkeypatch.context() as patch:
            patch.setattr(Path, stop, until)
            try:
                job(run)
            except SystemExit:
                pass
            else:
                break
        job(run)
        assert store.verify(run) == []
        assert store.read_text(run / "b" / "x", run=run) == "y"
    assert position >= 2
    assert calls <= 4 * (position + 1)
