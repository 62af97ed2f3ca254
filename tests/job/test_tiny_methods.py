"""Every row of the table of methods as a whole job on a small language model: it ends, repeats, and resumes."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import dualign
from dualign.job import assembly
from dualign.methods.table import METHODS
from dualign.models.language_model import ComputeChoice
from dualign.runs import journal
from dualign.runs.journal import read_events
from tiny_jobs import job, write_config


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("methods")
    return folder, job(folder)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep threads, which a job finds by timing, the same in jobs that have to agree to the last digit."""
    monkeypatch.setattr(assembly, "choose_compute", lambda _: ComputeChoice("float32", 1, {}, 0.0))


@pytest.mark.parametrize("name", METHODS)
def test_a_job_by_every_method(name: str, tiny: tuple[Path, dict[str, Any]]) -> None:
    folder, config = tiny[0], copy.deepcopy(tiny[1])
    config["method"] |= {"name": name, "max_rounds": 2}
    if any(option.name == "steps" for option in METHODS[name].options):
        config["method"]["options"] = {"steps": 6}
    run, arguments = folder / name, ("--json", "--quiet")
    path = write_config(folder, config, f"{name}.yaml")
    done = dualign("train", path, "--out", run, *arguments)
    assert done.code in (0, 10, 11) and done.err == "", done
    told = json.loads(done.out)
    assert told["iterates"]
    assert all(row["role"] in ("dpo", "search") for row in told["iterates"])
    if not METHODS[name].begins_with_dpo:
        assert "dpo" not in {row["role"] for row in told["iterates"]}
    for row in told["iterates"]:
        assert all(value >= 0 for value in row["multipliers"].values())
        assert np.isfinite([row["reward"], row["kl"], *row["costs"].values()]).all()
    assert dualign("train", path, "--out", run, *arguments).out == done.out
    stopped = folder / f"{name}-stopped"
    with ended_in_phase(last_fit(run)):
        assert dualign("train", path, "--out", stopped, *arguments).code == 130
    resumed = dualign("train", path, "--out", stopped, *arguments)
    assert resumed.code == done.code
    assert without_times(json.loads(resumed.out)) == without_times(told)


def last_fit(run: Path) -> int:
    """Return the number (from 0) of the last phase that trained among all that finished; the middle one without any."""
    phases = [e["phase"] for e in read_events(run) if e["event"] == "finished"]
    return max((k for k, phase in enumerate(phases) if phase == "fit"), default=len(phases) // 2)


@contextmanager
def ended_in_phase(number: int) -> Iterator[None]:
    """End the command by a signal's exception when that phase has done its work and nothing of it is sealed."""
    seal, left = journal._seal, iter(range(number))

    def until(*arguments: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        seal(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "_seal", until)
        yield


def without_times(told: Any) -> Any:
    """Return ``told`` without what a clock decides, and without the path of the report."""
    if isinstance(told, dict):
        return {k: without_times(v) for k, v in told.items() if "seconds" not in k and k != "report"}
    return [without_times(v) for v in told] if isinstance(told, list) else told


def test_the_mix_between_two_policies_is_one_more(tiny: tuple[Path, dict[str, Any]]) -> None:
    folder, config = tiny[0], copy.deepcopy(tiny[1])
    config["method"] |= {"interpolate": True, "max_rounds": 3}
    done = dualign("train", write_config(folder, config, "mixed.yaml"), "--out", folder / "mixed", "--json", "--quiet")
    rows = json.loads(done.out)["iterates"]
    sides = [row["costs"]["letter"] > 0.5 for row in rows if not row["name"].endswith("between")]
    mixed = [row for row in rows if row["name"].endswith("between")]
    assert len(mixed) == (len(set(sides)) == 2)
    assert all(row["steps"] == 0 and np.isfinite(row["reward"]) for row in mixed)
