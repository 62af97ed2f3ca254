"""A job on a preference file: pairs that are given are labelled by the scorers, and no sample is drawn to train on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import dualign
from dualign.config import load_config
from dualign.errors import ConfigError, DataError
from dualign.pipeline.pairs import load_pairs
from tiny_jobs import job, write_config


def pair_file(path: Path, prompts: Path) -> list[dict[str, str]]:
    """Write two pairs for each of the first twenty prompts, and rows that teach nothing."""
    rng = np.random.default_rng(0)
    texts = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]
    rows = []
    for text in texts[:20]:
        for _ in range(2):
            good, bad = ("".join(rng.choice(list("abcdefgh"), 6)) for _ in range(2))
            rows.append({"prompt": text, "chosen": good, "rejected": bad})
    rows.append({"prompt": texts[0], "chosen": "bcd", "rejected": "bcd"})
    rows.append({**rows[0], "chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    made = job(tmp_path)
    pair_file(tmp_path / "pairs.jsonl", tmp_path / "benign.jsonl")
    made["data"]["pairs"] = [{"path": "pairs.jsonl", "columns": {"label": "risky"}}]
    risky = made["data"]["sources"][0]
    made["data"]["sources"] = [{**risky, "splits": {"tune": 30, "calibration": 50, "report": 6}}]
    return made


def test_pairs_are_read_once_whichever_way_round(tmp_path: Path, config: dict[str, Any]) -> None:
    given = load_pairs(load_config(write_config(tmp_path, config)), tmp_path)
    pairs, notes = given.pairs, given.notes
    assert len(pairs) == 40  # without the identical pair, and the one that came the other way round
    assert {prompt.columns["label"] for prompt, _, _ in pairs} == {"risky"}
    assert "40 pairs taken" in notes[0] and len(notes) == 1 and not given.warnings
    config["data"]["pairs"][0]["count"] = 7
    fewer = load_pairs(load_config(write_config(tmp_path, config)), tmp_path).pairs
    assert len(fewer) == 7 and all(pair in pairs for pair in fewer)


def test_a_job_on_pairs_lowers_the_cost_and_samples_nothing_to_train_on(tmp_path: Path, config: dict[str, Any]) -> None:
    run = tmp_path / "run"
    done = dualign("train", write_config(tmp_path, config), "--out", run, "--json", "--quiet")
    assert done.code in (0, 10, 11), done
    told = json.loads(done.out)
    costs = [row["costs"]["letter"] for row in told["iterates"]]
    assert costs[1] < costs[0]
    assert not (run / "reference" / "samples-train").exists()
    summary = json.loads((run / "data" / "summary.json").read_text())
    assert summary["splits"]["train"] == 20
    assert any("40 pairs taken" in note for note in summary["notes"])
    (checked,) = summary["data_check"]
    found = {one["rule"]: one["count"] for one in checked["rules"]}
    assert found == {"identical pair": 1, "pair labelled both ways": 2}
    assert "39 of 42 rows kept" in checked["verdict"]
    page = (run / "report.html").read_text()
    assert "labelled both ways" in page and checked["verdict"] in page


def test_prompts_weigh_equally_however_many_pairs_they_have(tmp_path: Path, config: dict[str, Any]) -> None:
    from dualign.pipeline.measurement import Scored
    from dualign.records import Prompt, Response

    twice, once = Prompt("x"), Prompt("y")
    rows = tuple((Response("a"), Response("b")) for _ in range(3))
    made = Scored((twice, twice, once), rows, np.zeros((3, 2)), np.zeros((3, 2, 1)), np.zeros((3, 2)))
    assert [group.weight for group in made.groups()] == [0.5, 0.5, 1.0]


def test_a_file_without_a_pair_is_refused_before_anything_is_trained(tmp_path: Path, config: dict[str, Any]) -> None:
    same = {"prompt": "abc def", "chosen": "bcd", "rejected": "bcd"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(same) + "\n")
    with pytest.raises((ConfigError, DataError), match="pairs"):
        load_pairs(load_config(write_config(tmp_path, config)), tmp_path)
    done = dualign("train", write_config(tmp_path, config), "--out", tmp_path / "run", "--json", "--quiet")
    assert done.code == 65 and done.out == "" and done.err.count("\n") == 1
