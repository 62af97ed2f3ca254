"""The same tiny job with two limits, with a tail, relative to the reference, and at a multiplier that is given."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from command_line import dualign
from tiny_jobs import job, write_config


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("tiny")
    return folder, job(folder)


LENGTH = {"kind": "length", "unit": "characters"}


@pytest.mark.parametrize(
    ("name", "constraints", "sections"),
    [
        (
            "two",
            [{}, {"name": "length", "scorer": LENGTH, "limit": 6.5, "cap": 8.0}],
            {"evaluation": {"responses_per_prompt": 2}},
        ),
        ("tail", [{"scorer": LENGTH, "functional": "cvar:0.8", "limit": 7.5, "cap": 8.0}], {}),
        ("relative", [{"functional": "relative", "limit": 0.2}], {}),
        ("fixed", [{"functional": "rate"}], {"method": {"name": "fixed", "start": 3.0}}),
    ],
)
def test_variants(
    name: str, constraints: list[dict[str, Any]], sections: dict[str, Any], tiny: tuple[Path, dict[str, Any]]
) -> None:
    folder, config = tiny[0], copy.deepcopy(tiny[1])
    first = config["constraints"][0]
    config["constraints"] = [{**first, **changes} if "name" not in changes else changes for changes in constraints]
    config |= sections
    run = folder / name
    done = dualign("train", write_config(folder, config, f"{name}.yaml"), "--out", run, "--json", "--quiet")
    assert done.code in (0, 10, 11) and done.err == "", done
    told = json.loads(done.out)
    certificate = json.loads((run / "certificate.json").read_text())
    assert told["verdict"] == certificate["verdict"]
    assert [row["name"] for row in told["iterates"]][0] == "00"
    assert set(told["limits"]) == {constraint["name"] for constraint in config["constraints"]}
    if name == "fixed":
        assert [row["multipliers"] for row in told["iterates"]] == [{"letter": pytest.approx(3.0)}]
        roles = {row["policy"] for row in json.loads((run / "report" / "comparisons.json").read_text())}
        assert "dpo" not in roles
    else:
        assert not any(told["iterates"][0]["multipliers"].values())
    if name == "tail":
        assert certificate["functional"].startswith("cvar:0.8:")
    if name == "relative":
        assert "relative" in certificate["claim"] and abs(told["reference"]["costs"]["letter"]) < 1e-12
    if name == "two":
        assert set(certificate["constraints"]) == {"letter", "length"}
