"""``dualign plan`` against the exact optimum, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from dualign.cli.plan import plan
from dualign.errors import DataError, DualignError, MissingError, UsageError
from dualign.maths.exact import optimum
from finite_worlds import binding

APP = typer.Typer()
APP.command()(plan)


def run(*words: object) -> tuple[int, Any]:
    done = CliRunner().invoke(APP, [str(word) for word in words])
    if isinstance(done.exception, DualignError):
        assert done.stdout == ""
        raise done.exception
    return done.exit_code, done.stdout


def rows(seed: int) -> list[dict[str, object]]:
    problem = binding(seed)
    return [
        {
            "prompt": f"p{j}",
            "reward": problem.reward[j, k],
            "cost_a": problem.costs[j, k, 0],
            "cost_b": problem.costs[j, k, 1],
            "weight": 7 * float(np.exp(problem.log_reference[j, k])),
            "prompt_weight": 3 * float(problem.prompt_weights[j]),
        }
        for k in range(6)
        for j in range(4)
    ]


def write(path: Path, table: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_plan_is_the_exact_optimum(tmp_path: Path, ending: str) -> None:
    problem, best, table = binding(3), optimum(binding(3)), rows(3)
    path = tmp_path / f"scores{ending}"
    if ending == ".jsonl":
        write(path, table)
    elif ending == ".csv":
        lines = [",".join(table[0])] + [",".join(map(str, row.values())) for row in table]
        path.write_text("\n".join(lines) + "\n")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path)
    a, b = problem.limits
    code, text = run(path, "--limit", f"b={b}", "--limit", f"a={a}", "--beta", problem.beta, "--json")
    figures = json.loads(text)
    assert (code, figures["feasible"], list(figures["multipliers"])) == (0, True, ["b", "a"])
    for i, name in enumerate("ab"):
        assert figures["multipliers"][name] == pytest.approx(best.multipliers[i], abs=1e-6)
        assert figures["predicted"]["costs"][name] == pytest.approx(problem.limits[i], abs=1e-6)
    assert figures["predicted"]["reward"] == pytest.approx(best.expectations.reward, abs=1e-6)
    assert figures["predicted"]["kl"] == pytest.approx(best.expectations.kl, abs=1e-6)
    assert figures["frontier"][0]["multipliers"] == {"a": 0.0, "b": 0.0}
    wanted = {"ess_median", "ess_share_below_5", "logit_spread", "kl_saturation"}
    assert wanted == set(figures["diagnostics"])


def small(**change: object) -> list[dict[str, object]]:
    table: list[dict[str, object]] = [
        {"prompt": f"p{j}", "reward": float(k), "cost": float(k + j)} for j in range(3) for k in range(4)
    ]
    table[5] |= change
    return table


def test_unreachable_limit_exits_11_with_the_whole_object(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", small())
    code, text = run(path, "--limit", 0.5, "--beta", 1, "--json")
    figures = json.loads(text)
    assert (code, figures["feasible"], figures["multipliers"]) == (11, False, {"cost": None})
    assert figures["attainable"] == {"cost": 1.0}
    assert "0.5" in figures["warnings"][0]
    assert run(path, "--limit", 0.5, "--beta", 1)[0] == 11


def test_slack_limit_needs_no_multiplier_and_the_table_prints(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", small())
    code, text = run(path, "--limit", 100, "--beta", 1, "--json")
    assert (code, json.loads(text)["multipliers"]) == (0, {"cost": 0.0})
    assert "can be reached" in run(path, "--limit", 2, "--beta", 1)[1]


def test_sharp_policies_warn(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", small())
    said = json.loads(run(path, "--limit", 100, "--beta", 0.01, "--json")[1])["warnings"]
    assert any("best-of-K" in text for text in said)
    assert any("below 5" in text for text in said)


@pytest.mark.parametrize("bad", [float("nan"), None, "3.0", True, float("inf")])
def test_a_score_that_is_no_number_is_refused_by_line(tmp_path: Path, bad: object) -> None:
    path = write(tmp_path / "s.jsonl", small(cost=bad))
    with pytest.raises(DataError, match="line 6: (column 'cost'|not JSON)"):
        run(path, "--limit", 2, "--beta", 1)


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_weights_without_probability_are_refused(tmp_path: Path, weight: float) -> None:
    table = [row | {"weight": 1.0} for row in small()]
    table[2]["weight"] = weight
    with pytest.raises(DataError, match="line 3: column 'weight'"):
        run(write(tmp_path / "s.jsonl", table), "--limit", 2, "--beta", 1)


def test_files_that_hold_nothing_or_are_not_there(tmp_path: Path) -> None:
    for name in ("empty.jsonl", "empty.csv", "empty.parquet"):
        (tmp_path / name).touch()
        with pytest.raises(DataError, match="no rows|is empty"):
            run(tmp_path / name, "--limit", 2, "--beta", 1)
    with pytest.raises(MissingError, match="no such file"):
        run(tmp_path / "absent.jsonl", "--limit", 2, "--beta", 1)
    with pytest.raises(DataError, match="one response"):
        run(write(tmp_path / "s.jsonl", small()[:5]), "--limit", 2, "--beta", 1)


def test_mistakes_typed_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", small())
    for words, message in (
        (["--limit", "2", "--beta", "0"], "above 0"),
        (["--limit", "2", "--beta=-1"], "above 0"),
        (["--limit", "2", "--beta", "nan"], "above 0"),
        (["--beta", "1"], "--limit: missing"),
        (["--limit", "coast=2", "--beta", "1"], "did you mean 'cost'"),
        (["--limit", "two", "--beta", "1"], "finite number"),
        (["--limit", "2", "--limit", "3", "--beta", "1"], "given twice"),
    ):
        with pytest.raises(UsageError, match=message):
            run(path, *words)
    with pytest.raises(UsageError, match="costs have names"):
        run(write(tmp_path / "named.jsonl", rows(1)), "--limit", 2, "--beta", 1)
