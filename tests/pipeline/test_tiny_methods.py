"""Every row of the table of methods as a whole job on a small language model: it ends, repeats, and is resumed."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import dualign
from dualign.methods.table import METHODS
from tiny_jobs import job, write_config


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("methods")
    return folder, job(folder)


@pytest.mark.parametrize("name", METHODS)
def test_a_job_by_every_method(name: str, tiny: tuple[Path, dict[str, Any]]) -> None:
    folder, config = tiny[0], copy.deepcopy(tiny[1])
    config["method"] |= {"name": name, "max_rounds": 2}
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


def test_the_mix_between_two_policies_is_one_more(tiny: tuple[Path, dict[str, Any]]) -> None:
    folder, config = tiny[0], copy.deepcopy(tiny[1])
    config["method"] |= {"interpolate": True, "max_rounds": 3}
    done = dualign("train", write_config(folder, config, "mixed.yaml"), "--out", folder / "mixed", "--json", "--quiet")
    rows = json.loads(done.out)["iterates"]
    sides = [row["costs"]["letter"] > 0.5 for row in rows if not row["name"].endswith("between")]
    mixed = [row for row in rows if row["name"].endswith("between")]
    assert len(mixed) == (len(set(sides)) == 2)
    assert all(row["steps"] == 0 and np.isfinite(row["reward"]) for row in mixed)
