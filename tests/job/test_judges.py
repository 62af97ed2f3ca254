"""An independent judge of what was trained on: its figures, and the warning where there is none."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dualign.config import Config
from dualign.errors import ConfigError
from dualign.job.checks import check, direction_of, scorer_specs
from dualign.job.results import judge_figures, run_job
from dualign.report.build import build_report, summary_text
from dualign.scorers.table import SAME_SCORE, dependence_warnings, same_scorer
from gibbs_jobs import Score, gibbs_config, gibbs_job

LIMIT = {"name": "harm", "limit": 0.55, "cap": 1.0}


def test_same_is_id_and_revision() -> None:
    assert same_scorer(Score(1), Score(1))  # type: ignore[arg-type]
    assert not same_scorer(Score(1), Score(2))  # type: ignore[arg-type]
    assert not same_scorer(Score(1), Score(1, 0.5))  # type: ignore[arg-type]


def test_scores_without_another_judge_are_named() -> None:
    trained: dict[str, Any] = {"reward": Score(0), "harm": Score(1), "other": Score(2)}
    judges: dict[str, Any] = {"harm": Score(1, 0.1), "other": Score(2)}
    (line,) = dependence_warnings(trained, judges)
    assert line.startswith(SAME_SCORE) and ": reward, other;" in line and "\n" not in line
    assert dependence_warnings(trained, {name: Score(1, 0.1) for name in trained}) == []  # type: ignore[misc]


def test_a_run_without_a_judge_says_so_everywhere(tmp_path: Path) -> None:
    result, _ = run_job(gibbs_job(tmp_path / "run", gibbs_config([LIMIT])))
    assert result["judges"] == {}
    (line,) = result["warnings"]
    assert line.startswith(f"{SAME_SCORE}: reward, harm")
    build_report(tmp_path / "run")
    assert SAME_SCORE in (tmp_path / "run" / "report.html").read_text()
    assert f"Warning: {SAME_SCORE}" in " ".join(summary_text(tmp_path / "run").split())


def test_the_judges_figures_stand_beside_the_trained_ones(tmp_path: Path) -> None:
    job = gibbs_job(tmp_path / "run", gibbs_config([LIMIT]))
    judges: dict[str, Any] = {"reward": Score(0, 2.0), "harm": Score(1, -0.25)}
    result, _ = run_job(replace(job, judges=judges))
    assert result["warnings"] == []
    found = result["judges"]
    # the same score, moved: it agrees on every order, and its mean is moved as far
    for name, shift in (("reward", 2.0), ("harm", -0.25)):
        assert found[name]["agreement"] == pytest.approx(1) and found[name]["n_prompts"] == 40
        assert found[name]["mean"] - found[name]["trained_mean"] == pytest.approx(shift)
    rows = json.loads((tmp_path / "run" / "report" / "comparisons.json").read_text())
    assert {"judge_harm", "judge_reward", "cost_harm"} <= {row["metric"] for row in rows}
    build_report(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What an independent judge says" in page and SAME_SCORE not in page


def test_figures_by_hand(tmp_path: Path) -> None:
    job = replace(gibbs_job(tmp_path / "run", gibbs_config([LIMIT])), judges={"harm": Score(1, 0.5)})  # type: ignore[dict-item]
    columns = {
        "policy": ["selected", "dpo", "selected", "selected", "selected"],
        "cost_harm": [0.0, 9.0, 1.0, 3.0, None],
        "judge_harm": [1.0, 9.0, 2.0, 6.0, None],
    }
    found = judge_figures(job, columns)["harm"]
    assert (found["mean"], found["n_prompts"], found["agreement"]) == (3.0, 3, pytest.approx(1))
    assert found["trained_mean"] == pytest.approx(4 / 3)
    assert found["error"] == pytest.approx(np.std([1, 2, 6], ddof=1) / 3**0.5)
    assert np.isnan(judge_figures(job, columns, "nobody")["harm"]["mean"])


def test_a_judge_is_of_its_scores_slice(tmp_path: Path) -> None:
    config = gibbs_config([{**LIMIT, "where": {"label": "risky"}}])
    job = replace(gibbs_job(tmp_path / "run", config), judges={"harm": Score(1, 0.5)})  # type: ignore[dict-item]
    result, _ = run_job(job)
    assert result["judges"]["harm"]["n_prompts"] == 20
    assert result["warnings"][0].startswith(f"{SAME_SCORE}: reward;")


def config_with(judge: dict[str, Any]) -> Config:
    return gibbs_config([LIMIT], evaluation={"responses_per_prompt": 4, "judge": judge})


def test_a_judge_is_checked_as_the_scorer_beside_it() -> None:
    config = config_with({"harm": {"kind": "regex", "pattern": "a"}, "reward": {"kind": "length"}})
    check(config)
    specs = scorer_specs(config)
    assert {name: direction_of(name) for name in specs} == {
        "reward": "reward", "cost harm": "cost", "judge harm": "cost", "judge reward": "reward"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("judge", "says"),
    [
        ({"ham": {"kind": "length"}}, "did you mean 'harm'"),
        ({"harm": {"kind": "lenght"}}, "judge harm"),
        ({"reward": {"kind": "guard", "model": "none"}}, "is a cost"),
    ],
)
def test_mistakes_in_a_judge(judge: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check(config_with(judge))
