"""``dualign train`` on a world file, SIGKILLed at random instants: the same command ends with the same bytes."""

import json
import multiprocessing
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

from command_line import dualign
from dualign.runs import store

HEAVY = ["torch", "scipy.optimize", "matplotlib.figure", "dualign.job.entry", "dualign.report.build"]
"""Imported once, by the process that all others are forked from."""


def world(prompts: int, responses: int) -> dict[str, object]:
    """Return a world of one limit that binds, big enough that its job takes a second or two."""
    rng = np.random.default_rng(7)
    rows = [
        {
            "prompt": f"x{j}",
            "responses": [
                {
                    "response": f"y{k}",
                    "reference": float(p),
                    "reward": float(rng.normal()),
                    "costs": {"harm": float(rng.normal())},
                }
                for k, p in enumerate(rng.dirichlet(np.ones(responses)) + 1e-4)
            ],
        }
        for j in range(prompts)
    ]
    return {"beta": 0.2, "limits": {"harm": -0.4}, "prompts": rows}


def train(folder: str, name: str) -> None:
    """Run the command as a process would."""
    os.environ["OMP_NUM_THREADS"] = "1"
    done = dualign("train", Path(folder) / "job.yaml", "--out", Path(folder) / name, "--quiet", "--json")
    raise SystemExit(done.code)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "world.json").write_text(json.dumps(world(20, 20)))
    (tmp_path / "job.yaml").write_text("policy: {world: world.json}\nmethod: {start: 1.0}\n")
    return tmp_path


def test_ten_of_ten_killed_jobs_end_like_the_uninterrupted_one(job: Path) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(HEAVY)

    def started(name: str) -> multiprocessing.process.BaseProcess:
        process = processes.Process(target=train, args=(str(job), name))
        process.start()
        return process

    def finished(name: str) -> Path:
        process = started(name)
        process.join(120)
        assert process.exitcode == 0
        return job / name

    finished("warm-up")
    begin = time.perf_counter()
    whole = finished("whole")
    lasting = time.perf_counter() - begin
    generator, cut = random.Random(20240305), 0
    for index in range(30):
        process = started(f"run-{index}")
        process.join(generator.uniform(0.05, 0.8) * lasting)
        cut += process.is_alive()
        process.kill()
        process.join()
        run = finished(f"run-{index}")
        for name in ("policy.json", "result.json"):
            assert (run / name).read_bytes() == (whole / name).read_bytes()
        assert store.verify(run) == []
        assert (run / "report.html").is_file()
        if cut == 10:
            break
    assert cut == 10, "most kills must come while the job is at work"
