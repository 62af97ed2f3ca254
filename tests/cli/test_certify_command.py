"""``dualign certify``: exit codes, JSON, the seal file, and one line for each mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from dualign.cli.certify import certify
from dualign.errors import DataError, DualignError, MissingError, UsageError

APP = typer.Typer(pretty_exceptions_enable=False)
APP.command()(certify)
GOLDEN = Path(__file__).parents[1] / "golden" / "certificate.json"


def run(*words: object) -> int:
    """Return the exit code of a verdict; mistakes come out as exceptions."""
    code = APP([str(word) for word in words], standalone_mode=False)
    return code if isinstance(code, int) else 0


def wave(n: int, mean: float, step: int) -> list[float]:
    """Costs without a random generator: evenly spread over 30 units, in a scrambled order."""
    return [mean + 30 * ((step * j) % n) / n - 15 for j in range(n)]


def write(path: Path, policies: dict[str, float], *, n: int = 240, column: str = "cost") -> Path:
    with path.open("w") as file:
        for policy, mean in policies.items():
            for j, cost in enumerate(wave(n, mean, 89)):
                file.write(json.dumps({"prompt": f"prompt {j}", "policy": policy, column: cost}) + "\n")
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path / "good.jsonl", {"policy": -6.0})


@pytest.fixture
def rungs(tmp_path: Path) -> Path:
    return write(tmp_path / "rungs.jsonl", {"safe": -6.0, "middle": -4.0, "bold": 2.0})


def figures(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return dict(json.loads(out))


def test_the_four_exit_codes(good: Path, rungs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--limit", "cost=0", "--cap", "cost=50", "--json")
    assert run(good, *common) == 0
    assert figures(capsys)["verdict"] == "CERTIFIED"
    assert run(good, "--limit", "-6", "--cap", "50", "--json") == 10
    assert figures(capsys)["verdict"] == "NOT CERTIFIED"
    assert run(rungs, *common, "--order", "bold,middle,safe") == 11
    found = figures(capsys)
    assert found["verdict"] == "NO CERTIFIED POLICY"
    assert [row["verdict"] for row in found["ladder"]] == ["NOT CERTIFIED", "NOT TESTED", "NOT TESTED"]  # type: ignore[index, attr-defined]
    assert run(rungs, *common, "--seal", tmp_path / "seal.json") == 0
    assert figures(capsys)["selected"] == "middle"
    assert run(rungs, *common[:3], "cost=60", "--json", "--seal", tmp_path / "seal.json") == 12
    assert figures(capsys)["verdict"] == "INVALID"


def test_golden_certificate(rungs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(rungs, "--limit", "0", "--cap", "50", "--seed", "3", "--scorer", "harm@1", "--json")
    found, golden = figures(capsys), json.loads(GOLDEN.read_text())
    assert list(found) == list(golden)
    ours, theirs = flat(found), flat(golden)
    assert list(ours) == list(theirs)
    for key, expected in theirs.items():
        number = isinstance(expected, float)
        assert ours[key] == (pytest.approx(expected, rel=1e-9) if number else expected), key


def flat(value: object, key: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {k: v for name, item in value.items() for k, v in flat(item, f"{key}/{name}").items()}
    if isinstance(value, list):
        return {k: v for i, item in enumerate(value) for k, v in flat(item, f"{key}/{i}").items()}
    return {key: value}


def test_the_same_command_gives_the_same_bytes(rungs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for _ in range(2):
        run(rungs, "--limit", "0", "--cap", "50", "--json")
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


def test_the_panel_names_verdict_policy_and_what_is_not_claimed(
    rungs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(rungs, "--limit", "0", "--cap", "50")
    out = capsys.readouterr().out
    for words in ("CERTIFIED: middle", "With confidence 0.95", "Assumed:", "Not claimed:", "NOT CERTIFIED"):
        assert words in out
    run(rungs, "--limit", "0", "--cap", "50", "--quiet")
    assert capsys.readouterr().out == "CERTIFIED\n"


def test_named_limits_and_a_column_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "c.jsonl", {"policy": -6.0}, column="cost_harm")
    assert run(path, "--limit", "harm=0", "--cap", "harm=50", "--json") == 0
    assert list(figures(capsys)["constraints"]) == ["harm"]  # type: ignore[call-overload]


def test_a_rate_from_the_command_line(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(good, "--limit", "0.5", "--functional", "rate", "--method", "clopper-pearson", "--json") == 0
    found = figures(capsys)
    assert (found["cap"], found["method"]) == (1.0, "clopper-pearson")
    assert found["estimate"] == pytest.approx(0.3, abs=0.01)  # the wave lies above 0 for 9 of its 30 units


def test_the_same_costs_again_are_no_second_opening_and_other_costs_pay(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--limit", "0", "--cap", "50", "--json", "--seal", tmp_path / "seal.json")
    seen = []
    for path in (good, good, write(tmp_path / "again.jsonl", {"policy": -6.1}), good):
        assert run(path, *common) == 0
        found = figures(capsys)
        seen.append((found["opening"], found["delta_spent"]))
    assert seen == [(1, pytest.approx(0.045)), (1, pytest.approx(0.045)), (2, pytest.approx(0.0045)), seen[0]]


MISTAKES: list[tuple[tuple[str, ...], str]] = [
    ((), "--limit: missing"),
    (("--limit", "0"), "cap of cost: missing"),
    (("--limit", "0", "--cap", "0"), "below its cap 0"),
    (("--limit", "none", "--cap", "50"), "expected a finite number; given 'none'"),
    (("--limit", "nan", "--cap", "50"), "expected a finite number; given 'nan'"),
    (("--limit", "0", "--cap", "inf"), "expected a finite number; given 'inf'"),
    (("--limit", "coste=0", "--cap", "50"), "no cost 'coste'; did you mean 'cost'?"),
    (("--limit", "0", "--limit", "1", "--cap", "50"), "given twice"),
    (("--limit", "0", "--cap", "50", "--confidence", "95"), "did you mean 0.95?"),
    (("--limit", "0", "--cap", "50", "--confidence", "0"), "strictly between 0 and 1"),
    (("--limit", "0", "--cap", "50", "--order", "safe,midle,bold"), "did you mean 'middle'?"),
    (("--limit", "0", "--cap", "50", "--order", "safe"), "left out: middle, bold"),
    (("--limit", "0", "--cap", "50", "--order", "safe,safe,middle,bold"), "named twice"),
    (("--limit", "0", "--cap", "50", "--functional", "rat"), "did you mean 'rate'?"),
    (("--limit", "0", "--cap", "50", "--functional", "cvar:0.9"), "threshold fixed beforehand"),
    (("--limit", "0", "--cap", "50", "--functional", "relative"), "write the differences"),
    (("--limit", "0", "--cap", "50", "--method", "t"), "known are betting"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_typed_mistake_is_one_line_and_exit_2(
    rungs: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        run(rungs, *words, "--json")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_caps_and_bare_limits_of_several_costs(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("prompt,cost_a,cost_b\nx,1,2\n")
    with pytest.raises(UsageError, match="write NAME=0, NAME of a, b"):
        run(tmp_path / "c.csv", "--limit", "0")
    with pytest.raises(UsageError, match="'b' has no --limit"):
        run(tmp_path / "c.csv", "--limit", "a=0", "--cap", "a=5", "--cap", "b=5")


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [("none.jsonl", None, MissingError), ("empty.jsonl", "", DataError), ("bad.csv", "a,b\n1,2\n", DataError)],
)
def test_file_mistakes_have_their_own_codes(
    tmp_path: Path, name: str, text: str | None, kind: type[DualignError]
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(kind) as caught:
        run(tmp_path / name, "--limit", "0", "--cap", "50")
    assert caught.value.exit_code == {MissingError: 66, DataError: 65}[kind]


def test_a_spoiled_seal_file_is_refused(good: Path, tmp_path: Path) -> None:
    for text in ("{", "[]", '{"claim": 3}'):
        (tmp_path / "seal.json").write_text(text)
        with pytest.raises(DataError, match="not a seal file"):
            run(good, "--limit", "0", "--cap", "50", "--seal", tmp_path / "seal.json")


def test_certify_needs_no_torch(good: Path) -> None:
    program = (
        "import sys, pathlib; from dualign.cli.certify import certify\n"
        f"certify(pathlib.Path({str(good)!r}), ['0'], ['50'], as_json=True)\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'pyarrow', 'matplotlib', 'scipy.stats'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- what opens nothing leaves the seal as it was -----------------------------------------------------


CERTIFIABLE = ("--limit", "0", "--cap", "50")


@pytest.mark.parametrize(
    "words",
    [
        ("--limit", "0"),
        ("--limit", "0", "--cap", "-1"),
        (*CERTIFIABLE, "--method", "bets"),
        (*CERTIFIABLE, "--method", "clopper-pearson"),
        (*CERTIFIABLE, "--functional", "tail"),
        (*CERTIFIABLE, "--floor", "1"),
        (*CERTIFIABLE, "--order", "x,y"),
        (*CERTIFIABLE, "--confidence", "95"),
    ],
)
@pytest.mark.parametrize("opened_before", [False, True])
def test_a_mistyped_command_burns_nothing(
    good: Path, tmp_path: Path, words: tuple[str, ...], opened_before: bool
) -> None:
    seal = tmp_path / "seal.json"
    if opened_before:
        run(good, *CERTIFIABLE, "--seal", seal, "--quiet")
    before = seal.read_bytes() if opened_before else None
    with pytest.raises(UsageError):
        run(good, *words, "--seal", seal)
    assert (seal.read_bytes() if seal.exists() else None) == before
    assert run(good, *CERTIFIABLE, "--seal", seal, "--quiet") == 0
    assert len(json.loads(seal.read_text())["openings"]) == 1


def test_a_policy_that_lacks_a_prompt_burns_nothing(rungs: Path, tmp_path: Path) -> None:
    seal, lines = tmp_path / "seal.json", rungs.read_text().splitlines()
    rungs.write_text("\n".join(lines[:-3]))
    with pytest.raises(DataError, match="lacks 3 of the 240 prompts"):
        run(rungs, *CERTIFIABLE, "--seal", seal)
    assert not seal.exists()


def test_a_fault_in_printing_burns_nothing(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(figures: object) -> str:
        raise RuntimeError("no such colour")

    monkeypatch.setattr("dualign.cli.certify.certificate_text", broken)
    with pytest.raises(RuntimeError):
        run(good, *CERTIFIABLE, "--seal", tmp_path / "seal.json")
    assert not (tmp_path / "seal.json").exists()


def test_an_opening_holds_the_seal_for_itself(good: Path, tmp_path: Path) -> None:
    from dualign.errors import LockedError
    from dualign.runs.lock import file_lock

    seal = tmp_path / "seal.json"
    program = (
        "import sys, pathlib; from dualign.runs.lock import file_lock\n"
        f"with file_lock(pathlib.Path({str(tmp_path / '.seal.json.lock')!r})):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match="holds it"):
            run(good, *CERTIFIABLE, "--seal", seal)
        assert not seal.exists()
        other.communicate("")
    with file_lock(tmp_path / ".seal.json.lock"):
        pass
    assert run(good, *CERTIFIABLE, "--seal", seal, "--quiet") == 0


def test_clusters_are_part_of_the_seal_and_of_the_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def file(name: str, cluster: list[str]) -> Path:
        rows = [
            {"prompt": f"prompt {j}", "cost": cost, "cluster": cluster[j]} for j, cost in enumerate(wave(240, -6, 89))
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    seal = tmp_path / "seal.json"
    thirds = file("a.jsonl", [str(j // 3) for j in range(240)])
    renamed = file("b.jsonl", [f"other {j // 3 * 7 % 80}" for j in range(240)])
    quarters = file("c.jsonl", [str(j // 4) for j in range(240)])
    run(thirds, *CERTIFIABLE, "--seal", seal, "--json")
    first = figures(capsys)
    run(renamed, *CERTIFIABLE, "--seal", seal, "--json")
    assert figures(capsys) == first
    assert run(quarters, *CERTIFIABLE, "--seal", seal, "--quiet") == 12
    assert len(json.loads(seal.read_text())["openings"]) == 1


def test_near_copies_are_warned_of_where_texts_are_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"{a}{b}" for a in ("red", "blue", "old", "wide") for b in ("door", "lamp", "hill", "boat", "coat")]
    texts = [" ".join(words[(j + k * k) % 20] for k in range(1, 8)) for j in range(20)]
    rows = [{"prompt": text + end, "cost": -6 + j % 5} for j, text in enumerate(texts) for end in ("", " please", "!")]
    path = tmp_path / "copies.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(path, *CERTIFIABLE, "--json")
    (line,) = figures(capsys)["warnings"]  # type: ignore[misc]
    assert "40 of 60 prompts are near-copies" in line and "column 'cluster'" in line
    clustered = [{**row, "cluster": str(j // 3)} for j, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in clustered))
    run(path, *CERTIFIABLE, "--json")
    assert figures(capsys)["warnings"] == []


def test_a_floor_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.jsonl"
    costs = [-9999.0] * 6 + [5.0] * 194
    path.write_text("".join(json.dumps({"prompt": f"q{j}", "cost": cost}) + "\n" for j, cost in enumerate(costs)))
    assert run(path, *CERTIFIABLE, "--quiet") == 0
    said = capsys.readouterr()
    assert said.out == "CERTIFIED\n" and "6 of 200 prompts carry the certificate" in said.err
    assert '"q0"' in said.err
    assert run(path, *CERTIFIABLE, "--floor", "-50", "--quiet") == 10


def test_the_panel_prints_the_statement_and_inert_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "c.jsonl", {"[/]a\x1b[2J": -6.0, "[bold]b": -5.0})
    assert run(path, *CERTIFIABLE) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "[/]a" in out and "[bold]b" in out
    assert "of the answers of policy" in out.replace("\n", " ").replace("│", "").replace("  ", " ")


def test_a_cost_without_a_limit_is_no_part_of_the_opening(good: Path, tmp_path: Path) -> None:
    words = ("--limit", "0", "--cap", "50", "--json", "--quiet", "--seal", tmp_path / "seal.json")
    rows = [json.loads(line) for line in good.read_text().splitlines()]
    named = tmp_path / "named.jsonl"
    for extra in ({}, {"cost_other": 1.0}):
        named.write_text(
            "".join(json.dumps({"prompt": r["prompt"], "cost_harm": r["cost"], **extra}) + "\n" for r in rows)
        )
        run(named, "--limit", "harm=0", "--cap", "harm=50", *words[4:])
    assert len(json.loads((tmp_path / "seal.json").read_text())["openings"]) == 1
