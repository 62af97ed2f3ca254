"""``dualign compare`` on a world file and on a small language model: cells, reuse, sharing, refusals."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from command_line import dualign
from dualign.config import MethodSection
from dualign.job.cells import Cell, fix_family, parse_arm
from dualign.methods.c_dpo import RECIPES
from dualign.runs.journal import read_events
from dualign.runs.store import read_json, write_json
from small_worlds import small_world
from tiny_jobs import job, write_config


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    made = small_world(2, beta=0.5)
    prompts = [
        {
            "prompt": prompt.text,
            "weight": prompt.weight,
            "responses": [
                {
                    "response": r.text,
                    "reference": r.reference,
                    "reward": r.reward,
                    "costs": dict(zip(made.names, r.costs, strict=True)),
                }
                for r in prompt.responses
            ],
        }
        for prompt in made.prompts
    ]  # fmt: skip
    raw = {"beta": made.beta, "limits": dict(made.limits), "prompts": prompts}
    (folder / "world.json").write_text(json.dumps(raw, default=float))
    return write_config(folder, {"policy": {"world": "world.json"}, "run": {"name": "small"}}, "world.yaml")


def test_a_table_of_all_methods_and_their_pages(world: Path, tmp_path: Path) -> None:
    arguments = ("compare", world, "--methods", "c-dpo,dpo,c-dpo:loss=kldpo+dual=newton", "--out", tmp_path / "all")
    done = dualign(*arguments, "--json")
    # The robust loss has no Gibbs slope: that cell fails, the others stand.
    assert done.code == 65, done
    report = json.loads(done.out)
    assert [row["method"] for row in report["rows"]] == ["c-dpo", "dpo"]
    assert report["best"] == "c-dpo" and report["rows"][1]["limits_held"] == 0
    assert "slope of a Gibbs policy" in report["failed"][0]
    assert report["rows"][0]["peak_bytes"] > 10**7
    assert {"run", "verdict", "limits", "selected", "iterates", "seconds", "report"} <= set(report)
    assert report["verdict"] == "CERTIFIED" and report["selected"]["method"] == "c-dpo"
    assert report["selected"]["multipliers"].keys() == report["limits"].keys() == report["selected"]["costs"].keys()
    assert [(cell["arm"], cell["seed"]) for cell in report["iterates"]] == [("c-dpo", 0), ("dpo", 0)]
    assert {f"compare.{kind}" for kind in ("json", "csv", "md", "html")} <= {
        p.name for p in (tmp_path / "all").iterdir()
    }
    again = dualign(*arguments[:3], "c-dpo,dpo", *arguments[4:])
    assert again.code == 0 and again.err.count("finished before") == 2
    assert "| c-dpo | 1 of 1 |" in again.out


def test_what_no_method_has_a_part_in_is_made_once(tmp_path: Path) -> None:
    config = copy.deepcopy(job(tmp_path))
    path = write_config(tmp_path, config, "job.yaml")
    done = dualign("compare", path, "--methods", "dpo,safedpo", "--out", tmp_path / "cells", "--json", "--quiet")
    assert done.code == 0, done
    rows = {row["method"]: row for row in json.loads(done.out)["rows"]}
    assert rows["safedpo"]["difference"]["reward"]["n"] > 2
    events = [list(read_events(tmp_path / "cells" / f"{name}-seed-0")) for name in ("dpo", "safedpo")]
    reused = {e["target"] for e in events[1] if e["event"] == "reused"}
    assert {"reference/samples-train", "reference/scores-train"} <= reused
    assert any(e.get("phase") == "fit" for e in events[1] if e["event"] == "finished")
    # two cells that were fixed together: each for itself at delta, the best of them at half of it; a third comes later
    cells = tmp_path / "cells"
    certificates = [read_json(cells / f"{name}-seed-0" / "certificate.json") for name in ("dpo", "safedpo")]
    assert [(c["opening"], c["delta_spent"], c["family"]["delta"]) for c in certificates] == [(1, 0.05, 0.025)] * 2
    assert any("delta / 2" in note for note in json.loads(done.out)["notes"])
    more = dualign("compare", path, "--methods", "dpo,safedpo,sacpo", "--out", cells, "--json", "--quiet")
    assert more.code == 0 and read_json(cells / "families.json") == [["dpo-seed-0", "safedpo-seed-0"], ["sacpo-seed-0"]]
    later = read_json(cells / "sacpo-seed-0" / "certificate.json")
    assert (later["opening"], later["delta_spent"], later["family"]["cells"]) == (2, 0.0045, 1)
    # time of fits alone: the reference's log-probabilities, which the first cell makes, are shared too
    for name, row in rows.items():
        found = (tmp_path / "cells" / f"{name}-seed-0" / "rounds").glob("0*/fit/policy.json")
        spent = sum(read_json(path)["report"]["seconds"] for path in found)
        assert row["fit_seconds"] == pytest.approx(spent, abs=2e-3) and spent > 0
    # a cell whose folder is removed after it was opened has been looked at all the same
    shutil.rmtree(cells / "dpo-seed-0")
    removed = dualign("compare", path, "--methods", "dpo", "--out", cells, "--json", "--quiet")
    opened = read_json(cells / "dpo-seed-0" / "certificate.json")
    assert removed.code == 0 and (opened["opening"], opened["delta_spent"]) == (3, 0.00045)


def test_mistakes_are_one_line(world: Path) -> None:
    dualign("compare", world, "--methods", "c-dpoo").refused(2, "c-dpo")
    dualign("compare", world, "--seeds", "0,x").refused(2, "whole numbers")
    dualign("compare", world, "--seeds", "0,0").refused(2, "none twice")
    dualign("compare", world, "--methods", "c-dpo:tau=1").refused(2, "tau")
    dualign("compare", "nowhere.yaml").refused(66, "nowhere.yaml")


def test_the_config_knows_every_loss_of_the_dual_loop() -> None:
    for name in RECIPES:
        assert MethodSection(loss=name).loss == name


def test_a_cell_of_another_config_is_refused_and_kept(world: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "cells", "--json", "--quiet")
    assert dualign("compare", world, "--methods", "dpo", *out).code == 0
    kept = (tmp_path / "cells" / "dpo-seed-0" / "result.json").read_bytes()
    done = dualign("compare", world, "--methods", "dpo", "--set", "method.labels=hard", *out)
    assert done.code == 65 and "made by another config: key method.labels" in done.err and done.out == ""
    assert (tmp_path / "cells" / "dpo-seed-0" / "result.json").read_bytes() == kept


def test_a_limit_out_of_reach_fails_its_cell_and_no_other(world: Path, tmp_path: Path) -> None:
    raw = json.loads((world.parent / "world.json").read_text())
    raw["limits"] = dict.fromkeys(raw["limits"], -99.0)
    (world.parent / "world.json").write_text(json.dumps(raw))
    done = dualign("compare", world, "--methods", "dpo,c-dpo", "--out", tmp_path / "far", "--json", "--quiet")
    report = json.loads(done.out)
    assert report["verdict"] == "NO CERTIFIED POLICY" and report["selected"] is None
    assert [row["limits_held"] for row in report["rows"]] == [0, 0]
    assert all(row["seconds_to_limit"]["mean"] is None for row in report["rows"])


def test_a_cell_whose_folder_is_gone_counts_as_opened_one_that_stands_unopened_does_not(tmp_path: Path) -> None:
    cell = Cell(parse_arm("dpo"), 0, tmp_path / "dpo-seed-0")
    fix_family([cell], {}, tmp_path)
    cell.run.mkdir()
    (cell.run / "config.yaml").write_text("{}")
    write_json(tmp_path / "opened.json", {cell.run.name: False})  # it was killed while it was trained
    fix_family([cell], {}, tmp_path)
    assert read_json(tmp_path / "families.json") == [[cell.run.name]] and read_json(tmp_path / "opened.json") == {}
    write_json(tmp_path / "opened.json", {cell.run.name: False})
    shutil.rmtree(cell.run)
    fix_family([cell], {}, tmp_path)
    assert read_json(tmp_path / "families.json") == [[cell.run.name], [cell.run.name]]
