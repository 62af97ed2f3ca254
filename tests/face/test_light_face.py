"""``plan``, ``solve``, ``certify``, ``upper_bound``, ``e_value`` as a notebook calls them, against the command line."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

import dualign
from command_line import dualign as command
from dualign.errors import ArgumentError, DataError
from dualign.maths.exact import optimum
from finite_worlds import binding
from small_worlds import raw_world, write_world

COSTS = np.random.default_rng(5).normal(-5.0, 12.0, 300).clip(max=50.0)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- bounds -------------------------------------------------------------------------------------------


def test_no_data_bounds_nothing_and_is_no_evidence() -> None:
    for method in ("betting", "clopper-pearson", "clustered-t"):
        assert dualign.upper_bound([], cap=1, delta=0.05, method=method) == math.inf
    assert dualign.upper_bound(np.array([]), cap=1, delta=0.05, method="hoeffding", floor=0) == math.inf
    assert dualign.e_value([], limit=0.1, cap=1, delta=0.05) == 1.0


@pytest.mark.parametrize("form", [list, tuple, np.array, pd.Series, lambda v: np.array(v, dtype=np.float32)])
def test_any_array_of_one_number_a_prompt_is_taken(form: Callable[[Any], Any]) -> None:
    values = [0.0, 0.25, 0.5, 0.0, 0.125] * 40
    assert dualign.upper_bound(form(values), cap=1, delta=0.05) == dualign.upper_bound(values, cap=1, delta=0.05)
    assert dualign.e_value(form(values), limit=0.3, cap=1, delta=0.05) > 20 * (1 - 1e-9)


def test_flags_count_as_events() -> None:
    flags = [True, False, False, False] * 25
    exact = dualign.upper_bound(flags, cap=1, delta=0.05, method="clopper-pearson")
    assert binom.cdf(25, 100, exact) == pytest.approx(0.05)
    assert 0.25 < exact < dualign.upper_bound(flags, cap=1, delta=0.05, method="hoeffding", floor=0)


def test_the_bound_covers_and_the_e_value_is_fair() -> None:
    rng = np.random.default_rng(0)
    wrong, wealth = 0, []
    for _ in range(300):
        values = (rng.random(60) < 0.3).astype(float)
        wrong += dualign.upper_bound(values, cap=1, delta=0.1) < 0.3
        wealth.append(dualign.e_value(values, limit=0.3, cap=1, delta=0.1))
    assert wrong <= 300 * 0.1 + 3 * math.sqrt(300 * 0.1 * 0.9)
    assert np.mean(wealth) <= 1 + 3 * np.std(wealth) / math.sqrt(300)


def test_seeds_are_orders() -> None:
    values = list(COSTS)
    found = {seed: dualign.e_value(values, limit=-4.5, cap=50, delta=0.01, seed=seed) for seed in (0, 0, 1, 2)}
    assert found[0] == dualign.e_value(values, limit=-4.5, cap=50, delta=0.01)
    assert len(set(found.values())) == 3


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    ([0.1, math.nan], {}, "values: value 1 is nan"),
    ([0.1, math.inf], {}, "values: value 1 is inf"),
    ([0.1, None], {}, "expected numbers; given None"),
    (["0.1", "0.2"], {}, "expected numbers; given '0.1'"),
    ("0.1", {}, "one number a prompt is needed, in one dimension; given"),
    (0.1, {}, "one number a prompt is needed, in one dimension; given"),
    ([[0.1, 0.2]], {}, r"given shape \(1, 2\)"),
    ([[0.1], [0.2, 0.3]], {}, "one number a prompt is needed"),
    ([1j], {}, "expected numbers"),
    ([0.1, 1.5], {}, "values: 1.5 is above the cap 1"),
    ([0.1], {"cap": math.inf}, "cap: expected a finite number; given inf"),
    ([0.1], {"cap": "1"}, "cap: expected a finite number; given '1'"),
    ([0.1], {"delta": 0}, "delta: must lie strictly between 0 and 1"),
    ([0.1], {"delta": 1.0}, "delta: must lie strictly between 0 and 1"),
    ([0.1], {"delta": 5}, "delta: must lie strictly between 0 and 1"),
    ([0.1], {"delta": math.nan}, "delta"),
    ([0.1], {"delta": True}, "delta"),
    ([0.1], {"seed": -1}, "seed: must be a whole number"),
    ([0.1], {"seed": 1.5}, "seed: must be a whole number"),
]


@pytest.mark.parametrize(("values", "arguments", "said"), WRONG)
@pytest.mark.parametrize("bound", [dualign.upper_bound, dualign.e_value])
def test_wrong_input_raises_one_line(bound: Any, values: Any, arguments: dict[str, Any], said: str) -> None:
    limit = {"limit": 0.5} if bound is dualign.e_value else {}
    with pytest.raises(ValueError, match=said) as caught:
        bound(values, **{"cap": 1.0, "delta": 0.05, **limit, **arguments})
    assert isinstance(caught.value, dualign.DualignError) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"method": "bets"}, "method: unknown 'bets'; did you mean 'betting'"),
        ({"method": "hoeffding"}, "floor: hoeffding needs the smallest value"),
        ({"method": "hoeffding", "floor": 0.2}, "0.1 is below the floor 0.2"),
        ({"method": "maurer-pontil", "floor": 2}, "floor: maurer-pontil needs"),
        ({"method": "clopper-pearson"}, "values of 0 or 1"),
    ],
)
def test_methods_say_what_they_need(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        dualign.upper_bound([0.1, 0.3], cap=1, delta=0.05, **arguments)


def test_a_limit_at_the_cap_is_refused() -> None:
    with pytest.raises(ArgumentError, match="limit: must be below the cap 1"):
        dualign.e_value([0.1], limit=1, cap=1, delta=0.05)


# --- certify ------------------------------------------------------------------------------------------


def by_command(path: Path, *words: object) -> dict[str, Any]:
    return dict(json.loads(command("certify", path, *words, "--json").out))


def test_numbers_are_certified_as_a_file_of_them_is(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "c.jsonl", [{"prompt": str(k), "cost": c} for k, c in enumerate(COSTS.tolist(), 1)])
    wanted = by_command(path, "--limit", 0, "--cap", 50)
    for costs in (list(COSTS), COSTS, pd.Series(COSTS), {"cost": COSTS}, path, str(path)):
        found = dualign.certify(costs, limit=0, cap=50)
        assert dict(found.figures) == wanted
    assert found.verdict == "CERTIFIED" and found.upper_bounds == {"cost": wanted["upper_bound"]}
    assert found.statement == wanted["statement"]
    assert dualign.e_value(COSTS, limit=0, cap=50, delta=0.05) == pytest.approx(wanted["e_value"], rel=1e-12)
    assert dualign.upper_bound(COSTS, cap=50, delta=0.05) == pytest.approx(wanted["upper_bound"], abs=0.05)


def test_every_table_of_rows_is_taken(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [
        {"prompt": f"question {k % 100}", "cost_harm": c, "cost_lies": -c / 9, "policy": f"p{k // 100}"}
        for k, c in enumerate(COSTS.tolist())
    ]
    path = jsonl(tmp_path / "c.jsonl", rows)
    wanted = by_command(path, "--limit", "harm=5", "--cap", "harm=50", "--limit", "lies=4", "--cap", "lies=9")
    for table in (rows, pd.DataFrame(rows), datasets.Dataset.from_list(rows), pd.DataFrame(rows).to_dict("list")):
        found = dualign.certify(table, limit={"harm": 5, "lies": 4}, cap={"harm": 50, "lies": 9})
        assert dict(found.figures) == wanted
    assert found.verdict == "CERTIFIED" and found.selected == "p2"
    renamed = pd.DataFrame(rows).rename(columns={"prompt": "question"})
    again = dualign.certify(
        renamed, limit={"harm": 5, "lies": 4}, cap={"harm": 50, "lies": 9}, columns={"prompt": "question"}
    )
    assert dict(again.figures) == wanted


def test_numbers_by_name_are_named_limits() -> None:
    found = dualign.certify(
        {"harm": COSTS, "lies": COSTS / 2}, limit={"harm": 0, "lies": 0}, cap={"harm": 50, "lies": 50}
    )
    assert list(found.upper_bounds) == ["harm", "lies"] and found.verdict == "CERTIFIED"
    assert (
        dualign.certify({"harm": COSTS, "lies": COSTS}, limit={"harm": -5}, cap={"harm": 50}).verdict == "NOT CERTIFIED"
    )


def test_a_seal_is_kept_to_and_the_first_failure_opens_nothing(tmp_path: Path) -> None:
    seal = tmp_path / "seal.json"

    def broken(certificate: object) -> None:
        raise RuntimeError("no paper")

    with pytest.raises(RuntimeError):
        dualign.certify(COSTS, limit=0, cap=50, seal=seal, finish=broken)
    assert not seal.exists()
    first = dualign.certify(COSTS, limit=0, cap=50, seal=seal)
    assert first.figures["opening"] == 1 and first == dualign.certify(COSTS, limit=0, cap=50, seal=str(seal))
    assert dualign.certify(COSTS, limit=1, cap=50, seal=seal).verdict == "INVALID"
    assert dualign.certify(COSTS, limit=1, cap=50, seal=seal).upper_bounds == {}


@pytest.mark.parametrize(
    ("costs", "arguments", "said"),
    [
        ([], {}, "costs: has no rows"),
        ([0.1, math.nan], {}, "costs: cost: value 1 is nan"),
        (["a"], {}, "expected numbers"),
        ("nowhere.jsonl", {}, "nowhere.jsonl: no such file"),
        ([0.1], {"cap": None}, "cap of cost: missing"),
        ([0.1], {"limit": {"harm": 0}}, "there is no cost 'harm'; known: cost"),
        ([0.1], {"limit": "0"}, "limit: expected a finite number; given '0'"),
        ([0.1], {"limit": 50}, "below its cap 50"),
        ([0.1], {"confidence": 95}, "confidence: must lie .* did you mean 0.95"),
        ([0.1], {"functional": "rat"}, "functional: unknown functional 'rat'; did you mean 'rate'"),
        ([0.1], {"functional": "relative"}, "functional relative"),
        ([0.1], {"order": ["a"]}, "order: there is no column 'policy'"),
        ([0.1], {"method": "t"}, "unknown method 't'"),
        ({"harm": [0.1], "lies": [0.1]}, {}, "limit 0: which of harm, lies"),
        ({"harm": [0.1], "lies": [0.1, 0.2]}, {"limit": {"harm": 0}}, "columns of unequal length"),
        ({"harm": [0.1], "lies": [0.1]}, {"limit": {"harm": 0}, "cap": {"harm": 1, "lies": 1}}, "'lies' has no limit"),
        ([{"prompt": "a", "cost": "x"}], {}, "costs: row 1: column 'cost' holds 'x'"),
        ([{"cost": 0.1}], {}, "no column 'prompt'"),
        (pd.DataFrame({"prompt": ["a"], "cost": [None]}), {}, "column 'cost' holds nothing"),
        ([{"prompt": "a", "cost": 1.0}, 3], {}, "costs: row 2: is a number"),
    ],
)
def test_what_cannot_be_certified_is_one_line(costs: Any, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(dualign.DualignError, match=said) as caught:
        dualign.certify(costs, **{"limit": 0, "cap": 50, **arguments})
    assert "\n" not in str(caught.value)


# --- plan and solve -----------------------------------------------------------------------------------


def scores(seed: int) -> list[dict[str, Any]]:
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


def test_a_plan_from_memory_is_the_exact_optimum() -> None:
    problem, best = binding(3), optimum(binding(3))
    limits = dict(zip("ab", problem.limits.tolist(), strict=True))
    for table in (scores(3), pd.DataFrame(scores(3))):
        found = dualign.plan(table, limits, beta=problem.beta)
        assert found.feasible
        assert list(found.multipliers.values()) == pytest.approx(list(best.multipliers), abs=1e-6)
        assert found.figures["predicted"]["reward"] == pytest.approx(best.expectations.reward, abs=1e-6)
    assert found.frontier()[0]["multipliers"] == {"a": 0.0, "b": 0.0}
    variance = float(
        sum(
            w * (np.exp(p) @ (r - np.exp(p) @ r) ** 2)
            for w, p, r in zip(problem.prompt_weights, problem.log_reference, problem.reward, strict=True)
        )
    )
    assert found.beta_raw == problem.beta
    assert found.beta_normalised == pytest.approx(problem.beta / math.sqrt(variance))


def test_a_plan_of_a_data_set_is_that_of_the_file(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"p{j}", "reward": float(k), "cost": float(k + j)} for j in range(5) for k in range(4)]
    done = command("plan", jsonl(tmp_path / "s.jsonl", rows), "--limit", 3, "--beta", 0.5, "--json")
    found = dualign.plan(datasets.Dataset.from_list(rows), 3, beta=0.5)
    assert dict(found.figures) == json.loads(done.out)
    assert found.beta_normalised == pytest.approx(0.5 / math.sqrt(5 / 3))


@pytest.mark.parametrize(
    ("table", "limits", "beta", "said"),
    [
        (scores(1), {"a": 1}, 0, "beta: must be a number above 0"),
        (scores(1), {"a": 1}, math.nan, "beta: must be a number above 0"),
        (scores(1), {"a": 1}, True, "beta: must be a number above 0"),
        (scores(1), 1, 1, "limit 1: which of a, b"),
        (scores(1), {"c": 1}, 1, "there is no cost 'c'"),
        (scores(1), {"a": math.inf}, 1, "limit a: expected a finite number"),
        ([], 1, 1, "scores: has no rows"),
        (7, 1, 1, "scores: rows are needed; given int"),
        (scores(1)[:3], {"a": 1}, 1, "has one response"),
    ],
)
def test_what_cannot_be_planned_is_one_line(table: Any, limits: Any, beta: float, said: str) -> None:
    with pytest.raises(dualign.DualignError, match=said) as caught:
        dualign.plan(table, limits, beta=beta)
    assert "\n" not in str(caught.value)


def test_a_world_is_solved_from_memory_as_from_its_file(tmp_path: Path) -> None:
    raw = raw_world(5, beta=0.25)
    path = write_world(tmp_path, raw)
    wanted = json.loads(command("solve", path, "--limit", "-0.4", "--json").out)
    for world in (raw, path, str(path)):
        found = dualign.solve(world, limits=-0.4)
        assert dict(found.figures) == wanted
    assert found.feasible and found.limits_met and found.beta_raw == 0.25
    assert found.beta_normalised == pytest.approx(0.25 / wanted["parameters"]["reward_sd"])
    assert len(found.frontier()) == wanted["rounds"] and found.multipliers == wanted["multipliers"]
    assert sum(r["probability"] for r in found.policy["prompts"][0]["responses"]) == pytest.approx(1)


def test_numbers_of_numpy_are_numbers_of_a_world() -> None:
    raw = raw_world(5, beta=0.25)
    plain = dualign.solve(raw, multipliers=1.0).figures
    raw["prompts"][0]["responses"][0]["reward"] = np.float64(raw["prompts"][0]["responses"][0]["reward"])
    assert dualign.solve(raw, multipliers={"cost0": 1}, method="fixed").figures["reward"] == plain["reward"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"beta": -1}, "beta: must be a number above 0"),
        ({"limits": {"coste0": 1}}, "there is no cost 'coste0'; did you mean 'cost0'"),
        ({"multipliers": -1}, "multiplier cost0: must be 0 or more"),
        ({"method": "cdpo"}, "did you mean 'c-dpo'"),
        ({"labells": "soft"}, "labells: no such argument; did you mean 'labels'"),
    ],
)
def test_what_cannot_be_solved_is_one_line(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(dualign.DualignError, match=said):
        dualign.solve(raw_world(5), **arguments)
    broken = raw_world(5)
    broken["prompts"][0]["responses"][0]["reward"] = math.nan
    with pytest.raises(DataError, match=r"world: prompts\[0\]\.responses\[0\]\.reward: must be a finite number"):
        dualign.solve(broken)


# --- a finished run -----------------------------------------------------------------------------------


def test_a_run_of_a_finite_world_is_loaded_without_torch(tmp_path: Path) -> None:
    write_world(tmp_path, raw_world(5))
    (tmp_path / "job.yaml").write_text("policy: {world: world.json}\n")
    assert command("train", tmp_path / "job.yaml", "--out", tmp_path / "run", "--quiet").code == 0
    run = dualign.load_run(tmp_path / "run")
    assert run.verdict == "CERTIFIED" and run.certificate is None and run.beta_normalised is None
    assert run.beta_raw == raw_world(5)["beta"] and len(run.frontier()) == len(run.result["iterates"])
    assert run.report() == tmp_path / "run" / "report.html" and "CERTIFIED" in str(run)
    with pytest.raises(dualign.DualignError, match="the world world.json answers inside that alone"):
        _ = run.policy
    program = f"import sys, dualign; dualign.load_run({str(tmp_path / 'run')!r}).frontier()"
    program += "; assert not {'torch', 'transformers', 'sklearn', 'matplotlib'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
