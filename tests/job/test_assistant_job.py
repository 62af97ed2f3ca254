"""The small assistant world as a whole job under a limit of the config's own name and height, against the truth."""

import json
from pathlib import Path

import pytest

from command_line import dualign
from dualign.job.demo import demo_config
from dualign.strict import parse_yaml

LIMIT = 0.4


def test_the_truth_is_held_against_the_configs_own_limit(tmp_path: Path) -> None:
    config = demo_config(0, "assistant-quick").model_dump(mode="json")
    config["constraints"][0] |= {"name": "risk", "limit": LIMIT}
    config["method"]["max_rounds"] = 2
    path, run = tmp_path / "job.yaml", tmp_path / "run"
    path.write_text(json.dumps(config))
    assert parse_yaml(path.read_text(), "job.yaml") == config
    done = dualign("train", path, "--out", run, "--json", "--quiet")
    assert done.code in (0, 10, 11), done
    exact = json.loads((run / "exact.json").read_text())
    assert exact["optimum"]["costs"]["risk"] == pytest.approx(LIMIT, abs=1e-6)
    assert exact["gap"] > 0 and exact["gap"] == pytest.approx(exact["gap_scores"] + exact["gap_training"], abs=1e-9)
    for arm in exact["arms"]:
        assert arm["limits_met"] == (arm["costs"]["risk"] <= LIMIT)
    plain = next(arm for arm in exact["arms"] if arm["name"] == "plain DPO")
    assert plain["costs"]["risk"] > LIMIT
    assert dualign("train", path, "--out", run, "--json", "--quiet").out == done.out
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert {"sft", "learn scores", "fit"} <= {event["phase"] for event in events if event["event"] == "reused"}
