"""The same tiny job with two limits, with a tail, relative to the reference, and at a multiplier that is given."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from command_line import dualign
from dualign.runs.journal import read_events
from dualign.runs.store import read_table
from tiny_jobs import LETTERS, job, letter_model, write_config


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


def test_a_warm_start_is_the_reference_and_ppo_may_keep_to_it(tmp_path: Path) -> None:
    config = job(tmp_path)
    # answers are imitated in whole sentences: these letters have a full stop
    letter_model(tmp_path / "model", letters=LETTERS + ".")
    rows = [{"prompt": f"{a}{b} fed", "response": "aaa."} for a in "abcdefgh" for b in "abcdefgh"]
    (tmp_path / "shown.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"count": 3, "target": "own", "where": {"label": "benign"}}
    stage = {"mix": [own, {"count": 60, "target": "demonstration"}], "demonstrations": "shown.jsonl"}
    fit = {"learning_rate": 0.05, "num_train_epochs": 6, "max_target_tokens": 8}
    config["policy"]["warm_start"] = [{**stage, **fit}]
    config["method"] = {"name": "ppo-lag", "max_rounds": 1, "options": {"steps": 3, "learning_rate": 0.02}}
    told = {}
    for ptx in (0.0, 2.0):
        config["method"]["options"]["ptx"] = ptx
        path, run = write_config(tmp_path, config, f"{ptx}.yaml"), tmp_path / f"{ptx}"
        done = dualign("train", path, "--out", run, "--json", "--quiet")
        assert done.code in (0, 10, 11) and done.err == "", done
        told[ptx] = json.loads(done.out)
    assert told[0.0]["reference"] == told[2.0]["reference"]
    letters = "".join(read_table(run / "reference" / "samples-train" / "samples.parquet")["response"])
    assert letters.count("a") > 0.16 * len(letters)  # before: 1 in 14
    assert told[0.0]["iterates"] != told[2.0]["iterates"]
    assert {e.get("phase") for e in read_events(run)} >= {"warm start samples", "warm start"}


def test_imitation_without_a_warm_start_is_refused(tiny: tuple[Path, dict[str, Any]]) -> None:
    folder, config = tiny[0], copy.deepcopy(tiny[1])
    config["method"] |= {"name": "ppo-lag", "options": {"ptx": 1.0}}
    path = write_config(folder, config, "ptx.yaml")
    dualign("train", path, "--out", folder / "ptx").refused(65, "imitates the answers of policy.warm_start")
