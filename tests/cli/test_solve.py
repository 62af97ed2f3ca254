import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from dualign.cli.methods import methods
from dualign.cli.solve import solve
from dualign.errors import DataError, DualignError, MissingError, UsageError
from dualign.methods.table import METHODS
from dualign.worlds.file import World
from small_worlds import raw_world, small_world, write_world

app = typer.Typer()
app.command("solve")(solve)
app.command("methods")(methods)


def run(*arguments: object) -> tuple[int, str, BaseException | None]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    code = done.exception.exit_code if isinstance(done.exception, DualignError) else done.exit_code
    return code, done.stdout, done.exception


def solved(*arguments: object) -> dict:
    code, text, error = run("solve", *arguments, "--json")
    assert code == 0, error
    return json.loads(text)


def as_file(world: World, folder: Path) -> Path:
    prompts = [
        {
            "prompt": p.text,
            "weight": p.weight,
            "responses": [
                {
                    "response": r.text,
                    "reference": r.reference,
                    "reward": r.reward,
                    "costs": dict(zip(world.names, map(float, r.costs), strict=True)),
                }
                for r in p.responses
            ],
        }
        for p in world.prompts
    ]
    return write_world(folder, {"beta": world.beta, "limits": dict(world.limits), "prompts": prompts})


FIELDS = {
    "method", "beta", "multipliers", "reward", "costs", "kl", "objective", "feasible", "limits_met", "rounds",
    "optimum", "gap", "distance", "fit_distance", "parameters", "iterates",
}  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "constraints"),
    [("bracket", 1), ("newton", 1), ("projected_newton", 2), pytest.param("gradient", 1, marks=pytest.mark.slow)],
)
def test_every_rule_finds_the_exact_multipliers(rule: str, constraints: int, tmp_path: Path) -> None:
    path = as_file(small_world(21, constraints=constraints, beta=0.5), tmp_path)
    found = solved(path, "--dual", rule)
    assert set(found) >= FIELDS
    assert set(found["iterates"][0]) >= {"multipliers", "reward", "costs", "kl"}
    assert found["rounds"] == len(found["iterates"])
    assert found["feasible"] and found["limits_met"]
    assert all(value == 0 for value in found["iterates"][0]["multipliers"].values())
    assert all(value == pytest.approx(1) for value in found["iterates"][1]["multipliers"].values())
    for name, exact in found["optimum"]["multipliers"].items():
        assert abs(found["multipliers"][name] - exact) <= max(0.01, 0.01 * exact)
    assert 0 <= found["gap"] <= 1e-3 * found["parameters"]["reward_sd"]
    assert found["fit_distance"] <= 2e-6
    assert found["gap"] == pytest.approx(found["beta"] * found["distance"])
    lagrangian = {
        key: figures["objective"]
        - sum(m * figures["costs"][name] for name, m in found["optimum"]["multipliers"].items())
        for key, figures in (("mine", found), ("best", found["optimum"]))
    }
    assert lagrangian["best"] - lagrangian["mine"] == pytest.approx(found["gap"], abs=1e-9)


def test_scores_in_other_units_give_the_same_policy(tmp_path: Path) -> None:
    raw = raw_world(5, beta=0.25)
    raw["limits"]["cost0"] = -0.4
    before = solved(write_world(tmp_path, raw))
    for prompt in raw["prompts"]:
        for response in prompt["responses"]:
            response["reward"] *= 50
            response["costs"]["cost0"] *= 0.01
    raw["beta"] *= 50
    raw["limits"]["cost0"] *= 0.01
    after = solved(write_world(tmp_path, raw), "--start", 5000)
    assert after["multipliers"]["cost0"] == pytest.approx(5000 * before["multipliers"]["cost0"], rel=1e-6)
    assert after["kl"] == pytest.approx(before["kl"], rel=1e-6)
    assert after["rounds"] == before["rounds"]


def test_a_slack_limit_needs_one_round(tmp_path: Path) -> None:
    found = solved(write_world(tmp_path, raw_world(1)), "--limit", "100")
    assert found["rounds"] == 1
    assert found["multipliers"] == {"cost0": 0}
    assert found["distance"] <= 1e-12


@pytest.mark.parametrize("constraints", [1, 2])
def test_infeasible_worlds_exit_11_with_the_full_object(constraints: int, tmp_path: Path) -> None:
    path = write_world(tmp_path, raw_world(2, constraints=constraints))
    code, text, _ = run("solve", path, "--limit", "cost0=-1000", "--json")
    found = json.loads(text)
    assert code == 11
    assert set(found) >= FIELDS
    assert not found["feasible"] and not found["limits_met"]
    assert found["gap"] is None and found["optimum"]["multipliers"]["cost0"] is None
    assert found["attainable"]["cost0"] > -1000
    if constraints == 1:
        assert found["costs"]["cost0"] == pytest.approx(found["attainable"]["cost0"], abs=1e-3)


def test_methods_that_ignore_limits_exit_0(tmp_path: Path) -> None:
    path = as_file(small_world(21, beta=0.5), tmp_path)
    plain = solved(path, "--method", "dpo")
    assert plain["rounds"] == 1 and plain["multipliers"] == {"cost0": 0} and not plain["limits_met"]
    chosen = solved(path, "--method", "fixed", "--multiplier", "2.5")
    assert chosen["multipliers"]["cost0"] == pytest.approx(2.5) and chosen["fit_distance"] <= 2e-6
    assert solved(path, "--method", "fixed")["multipliers"] == solved(path)["multipliers"]
    assert solved(path, "--multiplier", "cost0=2.5")["reward"] == pytest.approx(chosen["reward"], abs=1e-12)


def test_hard_labels_are_warned_of_and_shown_by_their_flips(tmp_path: Path) -> None:
    found = solved(as_file(small_world(21, beta=0.5), tmp_path), "--labels", "hard", "--multiplier", "1")
    assert "no finite optimum" in found["warnings"][0]
    assert found["fit_distance"] is None
    shares = [point["share"] for point in found["flip_curve"]]
    assert shares[0] == 0 and shares == sorted(shares)


def test_the_policy_is_written_as_probabilities(tmp_path: Path) -> None:
    out = tmp_path / "policy.json"
    found = solved(as_file(small_world(21, beta=0.5), tmp_path), "--policy", out)
    table = json.loads(out.read_text())
    assert table["multipliers"] == found["multipliers"]
    for prompt in table["prompts"]:
        assert sum(response["probability"] for response in prompt["responses"]) == pytest.approx(1)
    assert [path.name for path in tmp_path.iterdir() if "policy" in path.name] == ["policy.json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "cdpo"], "did you mean 'c-dpo'?"),
        (["--dual", "brackt"], "did you mean 'bracket'?"),
        (["--dual", "bracket"], "use projected_newton"),
        (["--dual", "newton"], "use projected_newton"),
        (["--labels", "sof"], "did you mean 'soft'?"),
        (["--loss", "dpp"], "did you mean 'dpo'?"),
        (["--limit", "cost3=1"], "did you mean"),
        (["--limit", "1"], "which of cost0, cost1"),
        (["--limit", "cost0=low"], "expected a finite number; given 'low'"),
        (["--limit", "cost0=nan"], "expected a finite number"),
        (["--beta", "0"], "--beta: must be a number above 0"),
        (["--beta", "-1"], "--beta"),
        (["--start", "soon"], "--start"),
        (["--start", "-1"], "--start"),
        (["--multiplier", "cost0=1"], "cost1"),
        (["--dual", "fixed"], "needs --multiplier"),
        (["--method", "dpo", "--multiplier", "cost0=1", "--multiplier", "cost1=1"], "--method fixed"),
        (["--temperature", "0"], "temperature"),
        (["--dual", "gradient", "--step", "0"], "--step"),
    ],
)
def test_typed_mistakes_are_one_line_and_exit_2(arguments: list, said: str, tmp_path: Path) -> None:
    code, text, error = run("solve", write_world(tmp_path, raw_world(3, constraints=2)), *arguments, "--json")
    assert isinstance(error, UsageError)
    assert code == 2 and text == ""
    assert said in str(error) and "\n" not in str(error)


def test_files_that_are_no_world(tmp_path: Path) -> None:
    assert isinstance(run("solve", tmp_path / "none.json")[2], MissingError)
    raw = raw_world(3)
    raw["prompts"][0]["responses"][0]["reference"] = 0
    assert isinstance(run("solve", write_world(tmp_path, raw))[2], DataError)


def test_the_table_for_people(tmp_path: Path) -> None:
    code, text, _ = run("solve", as_file(small_world(21, beta=0.5), tmp_path))
    assert code == 0
    assert "limits met" in text and "optimum" in text and "round 0" in text


def test_methods_are_listed() -> None:
    code, text, _ = run("methods", "--json")
    rows = {row["name"]: row for row in json.loads(text)["methods"]}
    assert code == 0 and set(rows) == set(METHODS)
    assert all({"name", "source", "needs", "reconstruction"} <= set(row) for row in rows.values())
    kinds = {name: row["constraint"] for name, row in rows.items()}
    others = {"dpo", "bfpo", "safedpo", "repo-dpo", "reinforce-lag"}
    assert {kinds[name] for name in set(METHODS) - others} == {"mean"}
    assert kinds["dpo"] == kinds["bfpo"] == "none"
    assert kinds["safedpo"] == "unsafe at probability 0" and kinds["repo-dpo"] == "per response"
    assert kinds["reinforce-lag"] == "mean, inflated for the test"


def test_the_table_of_methods_shows_every_fact_of_a_row() -> None:
    words = set(run("methods")[1].replace("│", " ").split())
    for method in METHODS.values():
        facts = [method.name, method.source, *method.needs, method.constraint, method.weight, method.note]
        wanted = {word for fact in facts for word in fact.split()}
        missing = {word for word in wanted if not {word, f"{word},"} & words}
        assert not missing, (method.name, missing)


def test_a_one_shot_start_needs_no_more_than_one_round_after_zero(tmp_path: Path) -> None:
    pytest.importorskip("dualign.maths.one_shot")
    found = solved(as_file(small_world(21, beta=0.5), tmp_path), "--start", "one-shot")
    exact = np.array(list(found["optimum"]["multipliers"].values()))
    np.testing.assert_allclose(list(found["iterates"][1]["multipliers"].values()), exact, rtol=1e-6)


def test_quiet_prints_the_verdict_alone(tmp_path: Path) -> None:
    path = as_file(small_world(0, beta=0.5), tmp_path)
    code, text, _ = run("solve", path, "--quiet")
    assert code == 0 and text.startswith("limits met; ") and "round 0" not in text


def test_a_fit_that_did_not_settle_is_said_and_a_larger_temperature_settles_it(tmp_path: Path) -> None:
    path = as_file(small_world(0, beta=100.0), tmp_path)
    far = solved(path, "--multiplier", 2000)
    assert far["fit_distance"] > 1e-3 and "did not settle" in far["warnings"][0]
    eased = solved(path, "--multiplier", 2000, "--temperature", 1000)
    assert eased["warnings"] == [] and eased["fit_distance"] <= 2e-6


def test_drawn_labels_have_no_closed_form(tmp_path: Path) -> None:
    path = as_file(small_world(0, beta=0.5), tmp_path)
    assert solved(path, "--multiplier", 0.6, "--labels", "bernoulli")["fit_distance"] is None
