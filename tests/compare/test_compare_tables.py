"""Outcomes to rows: means, errors, differences and the reward at equal cost, by hand."""

import csv
import io
import math
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dualign.errors import UsageError
from dualign.hashing import plain
from dualign.job.cells import Outcome, cells, front_at, parse_arm
from dualign.job.compare import best, summarise
from dualign.report.compare_page import comma_separated, markdown, page

ONE = Outcome(
    arm="c-dpo", seed=0, holds=True, reward=1.0, costs={"harm": 0.2}, kl=2.0, objective=0.8, errors={"reward": 0.3},
    front=[(0.6, 2.0, 1.2), (0.2, 1.0, 0.9)], seconds=10.0, wall_seconds=20.0, peak_bytes=10**9, policies=2,
    refusals={"benign": 0.1}, by_prompt={"a": 1.0, "b": 2.0, "c": 0.0},
)  # fmt: skip


def other(**changes: object) -> Outcome:
    return replace(ONE, **{"arm": "dpo", **changes})  # type: ignore[arg-type]


def test_one_seed_has_the_error_of_its_prompts() -> None:
    row = summarise([ONE], {"harm": 0.4})[0]
    assert row["reward"] == {"mean": 1.0, "error": 0.3}
    assert row["reward_at_harm_limit"]["mean"] == pytest.approx(1.5)
    assert row["objective_at_harm_limit"]["mean"] == pytest.approx(1.05)
    assert row["difference"] == {"objective": None, "reward": None}


def test_two_seeds_have_the_error_between_them() -> None:
    row = summarise([ONE, replace(ONE, seed=1, reward=2.0, holds=False)], {"harm": 0.4})[0]
    assert row["reward"]["mean"] == 1.5 and row["reward"]["error"] == pytest.approx(0.5)
    assert (row["limits_held"], row["seeds"]) == (1, 2)


def test_differences_are_paired_by_prompt_and_by_seed() -> None:
    moved = other(by_prompt={"a": 1.5, "b": 2.5, "c": 0.5, "d": 99.0}, objective=0.9)
    row = summarise([ONE, moved], {"harm": 0.4})[1]
    assert row["difference"]["reward"] == {"mean": pytest.approx(0.5), "low": 0.5, "high": 0.5, "n": 3}
    assert row["difference"]["objective"] is None
    row = summarise([ONE, replace(ONE, seed=1), moved, other(seed=1, objective=0.7)], {"harm": 0.4})[1]
    assert row["difference"]["objective"]["mean"] == pytest.approx(0.0)
    assert row["difference"]["objective"]["low"] == pytest.approx(-12.7062 * 0.1, rel=1e-4)


def test_reward_and_objective_at_a_cost_are_linear_on_the_front() -> None:
    front = [(0.0, 0.0, -1.0), (1.0, 1.0, 0.5), (0.5, 0.1, 0.0), (2.0, 0.5, 9.0)]
    assert front_at(front, 0.25) == pytest.approx((0.05, -0.5))
    assert front_at(front, 0.75) == pytest.approx((0.55, 0.25))
    for cost, rows in ((1.5, front), (-0.1, front), (0, [])):
        assert all(math.isnan(value) for value in front_at(rows, cost))


def test_the_best_holds_its_limits_in_four_of_five_seeds() -> None:
    rows = summarise([ONE, other(holds=False, objective=5.0), other(arm="sacpo", objective=0.9)], {"harm": 0.4})
    assert best(rows) == "sacpo"
    assert best(rows[1:2]) is None


def test_pages_escape_and_hold_every_method() -> None:
    rows = summarise([ONE, other(arm="dpo:loss=<b>|x")], {"harm": 0.4})
    report = {
        "run": "<i>", "limits": {"harm": 0.4}, "rows": rows, "iterates": [], "best": best(rows), "failed": ["<script>"],
        "notes": [],
    }  # fmt: skip
    made = page(report)
    assert "<script>" not in made and "<i>" not in made and "dpo:loss=&lt;b&gt;" in made
    assert "loss=<b>\\|x" in markdown(report)


def test_a_line_a_cell_as_csv() -> None:
    cells = [ONE, other(errors={"harm": 0.05}, refusals={}, multipliers={"harm": 1.5}, seconds_to_limit=7.0)]
    rows = summarise(cells, {"harm": 0.4})
    report = {"limits": {"harm": 0.4}, "rows": rows, "iterates": [plain(asdict(cell)) for cell in cells]}
    lines = list(csv.DictReader(io.StringIO(comma_separated(report))))
    assert [line["method"] for line in lines] == ["c-dpo", "dpo"]
    assert (lines[0]["error_reward"], lines[0]["error_harm"], lines[0]["refused_benign"]) == ("0.3", "", "0.1")
    assert (lines[1]["error_reward"], lines[1]["error_harm"], lines[1]["refused_benign"]) == ("", "0.05", "")
    assert (lines[1]["multiplier_harm"], lines[1]["seconds_to_limit"]) == ("1.5", "7.0")
    assert lines[0]["seconds_to_limit"] == ""


@pytest.mark.parametrize(("text", "said"), [("sacp", "sacpo"), ("c-dpo:loss", "KEY=VALUE")])
def test_what_is_no_arm(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_arm(text)


def test_folders_of_long_arms_are_short_and_differ(tmp_path: Path) -> None:
    long = "ppo-lag:kl_share=0.56+learning_rate=0.001+prompts=64+rate=0.0"
    made = cells([parse_arm(f"{long}{digit}") for digit in (1, 2)], [0, 12345], tmp_path)
    names = [cell.run.name for cell in made]
    assert len(set(names)) == 4 and all(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) for name in names)
    (short,) = cells([parse_arm("c-dpo:loss=kldpo")], [0], tmp_path)
    assert short.run.name == "c-dpo-loss-kldpo-seed-0"


def test_a_seed_that_a_method_did_not_finish_counts_against_it() -> None:
    both = [ONE, replace(ONE, seed=1)]
    rows = summarise([*both, other(objective=9.0)], {"harm": 0.4})
    assert [row["held"] for row in rows] == [True, False] and best(rows) == "c-dpo"
    assert summarise([other(objective=9.0)], {"harm": 0.4})[0]["held"]


def test_a_point_is_called_by_its_method_unless_two_arms_share_it() -> None:
    rows = summarise(
        [ONE, other(arm="dpo:smoothing=0.25"), other(arm="fixed:start=1"), other(arm="fixed:start=2")], {"harm": 0.4}
    )
    report = {
        "run": "r",
        "limits": {"harm": 0.4},
        "rows": rows,
        "iterates": [],
        "best": best(rows),
        "failed": [],
        "notes": [],
    }
    drawing = page(report).partition("<svg")[2].partition("</svg>")[0]
    assert all(f">{name}<" in drawing for name in ("c-dpo", "dpo", "fixed:start=1", "fixed:start=2"))
    assert "smoothing" not in drawing and "dpo:smoothing=0.25" in page(report)
