"""`dualign train` on a real, tiny language model: every stage, then again, then after a loss."""

import json
import shutil
from pathlib import Path
from typing import Any

from command_line import dualign
from tiny_jobs import job, write_config


def result_of(run: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run / "result.json").read_text())
    del value["seconds"]
    return value


def test_a_job_trains_certifies_reports_and_resumes(tmp_path: Path) -> None:
    config, run = write_config(tmp_path, job(tmp_path)), tmp_path / "run"
    first = dualign("train", config, "--out", run, "--json", "--quiet")
    assert first.code in (0, 10, 11), first
    told = json.loads(first.out)
    assert told["verdict"] and len(told["iterates"]) == 2
    assert "<h1" in (run / "report.html").read_text()
    before = result_of(run)
    assert before["iterates"][0]["multipliers"] == {"letter": 0.0}
    assert before["iterates"][1]["costs"]["letter"] < before["iterates"][0]["costs"]["letter"]

    again = dualign("train", config, "--out", run, "--json", "--quiet")
    assert again.code == first.code and result_of(run) == before

    shutil.rmtree(run / "rounds" / "01" / "fit")
    shutil.rmtree(run / "rounds" / "01" / "samples-tune")
    restored = dualign("train", config, "--out", run, "--json", "--quiet")
    assert restored.code == first.code and result_of(run) == before
