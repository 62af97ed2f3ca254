"""Where the system has no ``fcntl`` (Windows): all works that needs no lock, the rest ends with one line."""

import json
import subprocess
import sys
from pathlib import Path

from small_worlds import raw_world, write_world

HIDDEN = "import sys; sys.modules['fcntl'] = None; from dualign.cli.main import main; main()"


def without(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HIDDEN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_needs_no_lock_works(tmp_path: Path) -> None:
    costs = tmp_path / "c.jsonl"
    costs.write_text("".join(json.dumps({"prompt": f"q{k}", "cost": -6.0}) + "\n" for k in range(200)))
    assert "train" in without("--help").stdout
    assert without("certify", costs, "--limit", 0, "--cap", 50, "--quiet").stdout == "CERTIFIED\n"
    assert json.loads(without("solve", write_world(tmp_path, raw_world(5)), "--json").stdout)["feasible"]


def test_what_needs_a_lock_names_the_mend_in_one_line(tmp_path: Path) -> None:
    write_world(tmp_path, raw_world(5))
    (tmp_path / "job.yaml").write_text("policy: {world: world.json}\n")
    done = without("train", tmp_path / "job.yaml", "--out", tmp_path / "run")
    assert (done.returncode, done.stdout) == (74, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "WSL" in done.stderr
    assert not (tmp_path / "run").exists()
