"""``dualign scorer check``: verdicts on scorers of known quality, forms of naming one, exit codes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from checked_answers import SCORERS, pair_rows, write
from command_line import dualign
from loopback_scorer import serving

MODULE = "scorers_of_a_check"


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file of labelled pairs, beside an importable module of scorers."""
    (tmp_path / f"{MODULE}.py").write_text(SCORERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return write(tmp_path / "pairs.jsonl", pair_rows(150, noise=0.1))


def check(scorer: str, rows: Path, *more: object) -> dict[str, Any]:
    done = dualign("scorer", "check", scorer, rows, "--json", "--quiet", *more)
    assert done.code == 0 and done.err == "", done
    found: dict[str, Any] = json.loads(done.out)
    return found


@pytest.mark.parametrize(
    ("name", "word", "sentence"),
    [
        ("good", "usable", "Usable as a cost: the less safe answer scores higher in "),
        ("noisy", "usable", "Usable as a cost"),
        ("flipped", "wrong sign", "The sign is wrong for a cost"),
        ("constant", "constant", "Constant: every answer scores 0.25"),
        ("chance", "at chance", "At chance as a cost"),
    ],
)
def test_the_verdict_on_scorers_of_known_quality(rows: Path, name: str, word: str, sentence: str) -> None:
    found = check(f"{MODULE}:{name}", rows)
    assert found["verdict"]["word"] == word and found["verdict"]["sentence"].startswith(sentence)
    shown = dualign("scorer", "check", f"{MODULE}:{name}", rows)
    assert shown.code == 0 and shown.out.splitlines()[-1] == found["verdict"]["sentence"]
    assert f"{MODULE}:{name}" in shown.out and "scoring with" in shown.err


def test_figures_of_a_good_cost(rows: Path) -> None:
    found = check(f"{MODULE}:good", rows)
    assert found["scorer"]["direction"] == "cost"
    # every tenth label is flipped, flags with it
    assert found["order"]["value"] == pytest.approx(0.9, abs=0.06)
    assert found["order"]["sign_test"]["p_right"] < 1e-15 and found["order"]["sign_test"]["p_wrong"] > 0.999
    assert found["order"]["low"] < 0.9 < found["order"]["high"]
    assert found["detection"]["auc"]["low"] > 0.8 and found["parity"]["held"]
    assert found["warnings"] == []


def test_capped_and_batched_scorers_are_warned_of(rows: Path) -> None:
    assert any("the maximum: capped" in line for line in check(f"{MODULE}:capped", rows)["warnings"])
    assert any("scored alone" in line for line in check(f"{MODULE}:batched", rows)["warnings"])


def test_a_second_scorer_stands_beside_the_first(rows: Path) -> None:
    found = check(f"{MODULE}:good", rows, "--second", f"{MODULE}:noisy")
    assert 0.3 < found["agreement"]["spearman"] < 0.95
    assert found["agreement"]["second_order"]["value"] < found["order"]["value"]
    shown = dualign("scorer", "check", f"{MODULE}:good", rows, "--second", f"{MODULE}:good", "--quiet").out
    assert "warning: the second scorer is the first" in shown and "agreement on pairs" in shown


@pytest.mark.parametrize("form", ["file", "folder", "inline"])
def test_a_scorer_is_named_by_a_file_a_folder_or_its_keys(rows: Path, tmp_path: Path, form: str) -> None:
    keys = {"kind": "regex", "pattern": "harm -"}
    (tmp_path / "scorer.yaml").write_text(json.dumps(keys))
    (tmp_path / "mine.json").write_text(json.dumps(keys))
    named = {"file": tmp_path / "mine.json", "folder": tmp_path, "inline": "kind=regex,pattern=harm -"}[form]
    found = check(str(named), rows)
    # 1 for the harmless: a cost of the wrong sign, and a reward of nothing
    assert found["verdict"]["word"] == "wrong sign" and found["extremes"]["values"] == 2
    assert check(str(named), rows, "--direction", "reward")["verdict"]["word"] == "at chance"


def test_a_service_is_checked_as_any_other(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with serving() as service:
        keys = {"kind": "http", "url": service.url, "cache": "kept"}
        (tmp_path / "judge.json").write_text(json.dumps(keys))
        found = check(str(tmp_path / "judge.json"), rows)
        shown = dualign("scorer", "check", tmp_path / "judge.json", rows, "--quiet")
    # the service counts letters; a minus sign makes the harmless longer
    assert found["verdict"]["word"] == "wrong sign" and service.requests
    # its scores are kept, and asking again for one answer would show what was kept
    assert found["parity"] is None and len(service.honest) == len(set(service.honest))
    (line,) = [line for line in shown.out.splitlines() if line.startswith("change when scored alone")]
    assert line.split()[4:6] == ["-", "not"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["lenght"], 2, "did you mean 'length'"),
        (["kind=length,units=words"], 2, "did you mean 'unit'"),
        (["kind=length,words"], 2, "kind=K,key=value"),
        (["no.yaml"], 66, "no.yaml: cannot be read"),
        (["length", "--beta", "0"], 2, "--beta 0"),
        (["length", "--temperature", "inf"], 2, "--temperature inf"),
        (["kind=compliance-harm", "--direction", "reward"], 2, "is a cost"),
        (["length", "--format", "pku"], 2, "unknown format 'pku'"),
        (["math:fsum"], 69, "raised TypeError"),
    ],
)
def test_mistakes(rows: Path, arguments: list[str], code: int, says: str) -> None:
    dualign("scorer", "check", arguments[0], rows, "--quiet", *arguments[1:]).refused(code, says)


def test_data_without_labels_is_a_mistake_in_the_data(rows: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "plain.jsonl", [{"prompt": "q", "response": "harm 1", "is_safe": True, "category": {}}])
    dualign("scorer", "check", "length", path, "--quiet").refused(65, "cannot be checked without labels")
    dualign("scorer", "check", "length", tmp_path / "none.jsonl", "--quiet").refused(66, "none.jsonl")


def test_columns_of_other_names(rows: Path, tmp_path: Path) -> None:
    named = [json.loads(line) for line in rows.read_text().splitlines()]
    renamed = [{("asked" if key == "prompt" else key): value for key, value in row.items()} for row in named]
    path = tmp_path / "renamed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in renamed))
    assert check(f"{MODULE}:good", path, "--columns", "prompt=asked")["order"] == check(f"{MODULE}:good", rows)["order"]
