"""Bad input through the real entry point: one line, the documented exit code, nothing on stdout, nothing on disk."""

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_line import dualign, tree
from dualign.runs.lock import run_lock
from small_worlds import raw_world, write_world
from tiny_jobs import job, letter_tokenizer, write_config

Config = dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    folder = tmp_path_factory.mktemp("job")
    return folder, job(folder)


@pytest.fixture
def good(made: tuple[Path, Config], tmp_path: Path) -> Config:
    """Return a config that runs, beside copies of its files."""
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    config = copy.deepcopy(made[1])
    config["policy"]["model"] = str(tmp_path / "model")
    return config


def test_the_config_that_the_others_spoil_is_accepted(good: Config, tmp_path: Path) -> None:
    done = dualign("train", write_config(tmp_path, good), "--dry-run", "--json", "--out", tmp_path / "run")
    assert done.code == 0 and not (tmp_path / "run").exists()
    assert json.loads(done.out)["splits"] == {"train": 36, "tune": 30, "report": 12, "calibration": 50}


def change(*path: Any, to: Any) -> Callable[[Config, Path], None]:
    """Return what sets one value of the config; ``to`` none: what removes its key."""

    def spoil(config: Config, folder: Path) -> None:  # noqa: ARG001
        place: Any = config
        for part in path[:-1]:
            place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
        if to is None:
            del place[path[-1]]
        else:
            place[path[-1]] = to

    return spoil


def write(name: str, text: str | bytes) -> Callable[[Config, Path], None]:
    """Return what replaces a file beside the config."""

    def spoil(config: Config, folder: Path) -> None:  # noqa: ARG001
        content = text.encode() if isinstance(text, str) else text
        (folder / name).write_bytes(content)

    return spoil


def remove(name: str) -> Callable[[Config, Path], None]:
    """Return what removes a file or folder beside the config."""

    def spoil(config: Config, folder: Path) -> None:  # noqa: ARG001
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


SECOND = {"name": "words", "scorer": {"kind": "length"}, "limit": 9.0, "cap": 20.0}


def second_limit(config: Config, folder: Path) -> None:  # noqa: ARG001
    config["constraints"].append(SECOND)
    config["method"]["dual"] = "bracket"


def warm_start(target: str, count: int) -> Callable[[Config, Path], None]:
    """Return what adds a stage of ``count`` examples on the risky prompts."""
    mix = {"count": count, "target": target, "where": {"label": "risky"} if target == "own" else {}}
    return change("policy", "warm_start", to=[{"mix": [mix]}])


HARM = ("constraints", 0)
REFUSED: list[tuple[str, Callable[[Config, Path], None], int, list[str]]] = [
    ("unknown section", change("trianing", to={}), 65, ["unknown key 'trianing'; did you mean 'training'?"]),
    ("unknown key", change("training", "lora_rank", to=4), 65, ["training: unknown key 'lora_rank'; did you mean"]),
    ("wrong type", change("training", "beta", to="high"), 65, ["training.beta", "given 'high'"]),
    ("beta 0", change("training", "beta", to=0), 65, ["training.beta: input should be greater than 0, given 0"]),
    ("beta below 0", change("training", "beta", to=-0.3), 65, ["training.beta", "given -0.3"]),
    ("no scorer", change(*HARM, "scorer", to=None), 65, ["constraints.letter.scorer: missing"]),
    ("no kind", change(*HARM, "scorer", to={}), 65, ["scorer of cost letter: names no kind"]),
    ("unknown scorer", change(*HARM, "scorer", "kind", to="regexp"), 65, ["unknown 'regexp'; did you mean 'regex'?"]),
    ("broken pattern", change(*HARM, "scorer", "pattern", to="("), 65, ["cost letter: regex: key 'pattern'"]),
    ("no cap", change(*HARM, "cap", to=None), 65, ["constraints.letter.cap: missing"]),
    ("limit at the cap", change(*HARM, "limit", to=1.0), 65, ["must be a finite number below its cap 1"]),
    ("limit not a number", change(*HARM, "limit", to=float("nan")), 65, ["constraints.letter.limit", "finite number"]),
    ("unknown functional", change(*HARM, "functional", to="median"), 65, ["unknown functional 'median'"]),
    ("empty slice", change(*HARM, "where", to={"label": "rsky"}), 65, ["no train prompt has {'label': 'rsky'}"]),
    ("slice that is not tuned", change(*HARM, "where", to={"label": "benign"}), 65, ["no tune prompt has"]),
    ("unknown method", change("method", "name", to="c-dop"), 65, ["unknown 'c-dop'; did you mean 'c-dpo'?"]),
    ("unknown rule", change("method", "dual", to="braket"), 65, ["unknown 'braket'; did you mean 'bracket'?"]),
    ("unknown loss", change("method", "loss", to="dop"), 65, ["method.loss", "did you mean 'dpo'?"]),
    ("unknown labels", change("method", "labels", to="softy"), 65, ["method.labels", "did you mean 'soft'?"]),
    ("bracket with two limits", second_limit, 65, ["bracket serves one limit, 2 are given; use projected_newton"]),
    ("one response a group", change("sampling", "responses_per_prompt", to=1), 65, ["equal to 2, given 1"]),
    ("no model", change("policy", "model", to="no/such/folder"), 66, ["model 'no/such/folder': no such folder"]),
    ("no package", change("policy", "model", to="package:no_such_package"), 66, ["no package 'no_such_package'"]),
    ("not a model", change("policy", "model", to="."), 66, ["has no config.json"]),
    ("model without weights", remove("model/model.safetensors"), 66, ["has no *.safetensors"]),
    ("no prompts", remove("risky.jsonl"), 66, ["risky.jsonl"]),
    ("prompts folder", change("data", "prompts", to="nowhere"), 66, ["nowhere"]),
    ("empty prompts", write("benign.jsonl", ""), 65, ["benign.jsonl"]),
    ("broken prompts", write("benign.jsonl", '{"prompt": "a"}\n{"prompt": '), 65, ["benign.jsonl", "2"]),
    ("prompts of another kind", write("benign.jsonl", '{"text": 3}\n'), 65, ["benign.jsonl"]),
    ("too few prompts", change("data", "sources", 0, "splits", "tune", to=500), 65, ["risky.jsonl: split", "500"]),
    ("shares above 1", change("data", "sources", 0, "splits", to={"train": 0.9, "tune": 0.9}), 65, ["sum to 1.8"]),
    ("split of none", change("data", "sources", 0, "splits", "tune", to=0), 65, ["split 'tune': 0"]),
    ("own answers of no prompt", warm_start("own", 40), 65, ["warm_start.0: 40", "and 24 train prompts are there"]),
    ("demonstrations of no file", warm_start("demonstration", 4), 65, ["warm_start.0: 4", "names no file"]),
    ("no calibration prompts", change("data", "sources", 0, "splits", "calibration", to=None), 65, ["'calibration'"]),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "code", "said"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_job_that_cannot_run_is_refused_and_leaves_no_trace(
    spoil: Callable[[Config, Path], None], code: int, said: list[str], good: Config, tmp_path: Path
) -> None:
    spoil(good, tmp_path)
    config = write_config(tmp_path, good)
    before = tree(tmp_path)
    dualign("train", config, "--out", tmp_path / "run", "--json").refused(code, *said)
    assert tree(tmp_path) == before and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("policy: {model: m}\npolicy: {model: n}\n", "line 2: the key 'policy' stands twice"),
        ("- policy\n", "expected sections (policy, data"),
        ("", "found NoneType"),
        ("policy: [\n", "line 2"),
        ("policy: !!python/name:os.system x\n", "could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_config(text: str, said: str, tmp_path: Path) -> None:
    dualign("train", write_config(tmp_path, text), "--out", tmp_path / "run").refused(65, said)


def test_a_config_that_cannot_be_read(tmp_path: Path) -> None:
    dualign("train", tmp_path / "none.yaml").refused(66, "none.yaml: No such file")
    (tmp_path / "latin.yaml").write_bytes("policy: {model: caf\xe9}".encode("latin-1"))
    dualign("train", tmp_path / "latin.yaml").refused(65, "not UTF-8")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trianing.beta=1", "unknown key 'trianing'"),
        ("training.beta=0", "training.beta"),
        ("training.beta", "expected KEY=VALUE"),
        ("method.name=cdpo", "did you mean 'c-dpo'?"),
        ("method.dual=brackt", "did you mean 'bracket'?"),
        ("constraints.0.limit=high", "constraints.letter.limit"),
    ],
)
def test_a_mistake_that_was_typed_exits_2(override: str, said: str, good: Config, tmp_path: Path) -> None:
    dualign("train", write_config(tmp_path, good), "--set", override).refused(2, said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch"], "no such command 'nosuch'"),
        (["train"], "missing argument"),
        (["train", "x.yaml", "--bogus"], "no such option: --bogus"),
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--seed", "x"], "--seed"),
        (["init", "--kind", "ppo"], "unknown 'ppo'; known: demo"),
        (["solve", "w.json", "--beta", "x"], "--beta"),
        (["plan", "s.jsonl", "--limit", "0"], "--beta"),
        (["plan", "s.jsonl", "--limit", "0", "--beta", "0"], "--beta"),
        (["certify", "c.jsonl"], "--limit"),
        (["certify", "c.jsonl", "--limit", "0"], ""),
        (["report"], "missing argument"),
    ],
)
def test_a_mistyped_command_line(arguments: list[str], said: str) -> None:
    done = dualign(*arguments)
    done.refused(66 if arguments[:1] == ["certify"] and len(arguments) == 4 else 2, said)


def test_without_a_command_the_help_is_shown() -> None:
    for arguments in ([], ["--help"], ["train", "--help"]):
        done = dualign(*arguments)
        assert done.code == (0 if arguments else 2) and "Usage: " in done.out and done.err == ""


def test_the_installed_command_refuses_alike(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "dualign.cli.main", "train", str(tmp_path / "none.yaml")]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (66, "")
    assert done.stderr.startswith("error: config ") and done.stderr.count("\n") == 1


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """Return the config of a world file, whose run stands finished beside it."""
    write_world(tmp_path, raw_world(5))
    config = write_config(tmp_path, {"policy": {"world": "world.json"}})
    assert dualign("train", config, "--out", tmp_path / "run", "--quiet").code == 0
    return config


def test_a_run_directory_made_by_another_config_is_refused_unchanged(finished: Path) -> None:
    run = finished.parent / "run"
    before = tree(run)
    dualign("train", finished, "--out", run, "--set", "run.seed=4").refused(65, "another config", "run.seed", "--out")
    assert tree(run) == before


def test_a_folder_of_something_else_is_refused_unchanged(finished: Path) -> None:
    other = finished.parent / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    dualign("train", finished, "--out", other).refused(65, "thesis.tex", "not a run directory")
    assert tree(other) == {"thesis.tex": b"x"}
    dualign("train", finished, "--out", other / "thesis.tex").refused(74, "thesis.tex")


def test_a_locked_run_directory_is_refused_unchanged(finished: Path) -> None:
    run = finished.parent / "run"
    program = "import sys,time\nfrom pathlib import Path\nfrom dualign.runs.lock import run_lock\n"
    program += "with run_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)\n"
    with subprocess.Popen([sys.executable, "-c", program, str(run)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        before = tree(run)
        dualign("train", finished, "--out", run).refused(75, f"process {holder.pid}", "writes this run directory")
        assert tree(run) == before
        holder.kill()
    assert dualign("train", finished, "--out", run, "--quiet").code == 0
    with run_lock(run):
        pass


def test_an_altered_run_is_refused_by_the_report_and_mended_by_its_command(finished: Path) -> None:
    run = finished.parent / "run"
    result = run / "result.json"
    whole = result.read_bytes()
    result.write_bytes(whole.replace(b'"CERTIFIED"', b'"certified"'))
    dualign("report", run).refused(65, "result.json is damaged")
    assert dualign("train", finished, "--out", run, "--quiet").code == 0
    assert result.read_bytes() == whole


WORLDS: list[tuple[str, Callable[[dict[str, Any]], object], int, str]] = [
    ("zero probability", lambda w: w["prompts"][0]["responses"][0].update(reference=0), 65, "a probability above 0"),
    ("one response", lambda w: w["prompts"][0].update(responses=w["prompts"][0]["responses"][:1]), 65, "two responses"),
    ("no responses", lambda w: w["prompts"][0].update(responses=[]), 65, "two responses"),
    ("NaN reward", lambda w: w["prompts"][1]["responses"][0].update(reward=float("nan")), 65, "a finite number"),
    ("missing cost", lambda w: w["prompts"][1]["responses"][0]["costs"].clear(), 65, "key 'cost0' is missing"),
    ("missing reward", lambda w: w["prompts"][1]["responses"][0].pop("reward"), 65, "key 'reward' is missing"),
    ("beta 0", lambda w: w.update(beta=0), 65, "a number above 0"),
    ("no limits", lambda w: w.update(limits={}), 65, "at least one named limit"),
    ("no prompts", lambda w: w.update(prompts=[]), 65, "at least one prompt"),
    ("unknown key", lambda w: w.update(limit=1), 65, "unknown key 'limit'; did you mean 'limits'?"),
]


@pytest.mark.parametrize("command", ["train", "solve"])
@pytest.mark.parametrize(("spoil", "code", "said"), [row[1:] for row in WORLDS], ids=[row[0] for row in WORLDS])
def test_a_world_that_is_none(
    spoil: Callable[[dict[str, Any]], object], code: int, said: str, command: str, tmp_path: Path
) -> None:
    world = raw_world(5)
    spoil(world)
    path = write_world(tmp_path, world)
    if command == "solve":
        dualign("solve", path, "--json").refused(code, "world.json", said)
    else:
        config = write_config(tmp_path, {"policy": {"world": "world.json"}})
        dualign("train", config, "--out", tmp_path / "run", "--json").refused(code, "world.json", said)
        assert not (tmp_path / "run").exists()


SCORES = [
    ('{"prompt": "a", "reward": 1.0, "cost": NaN}\n{"prompt": "a", "reward": 0, "cost": 1}\n', 65),
    ('{"prompt": "a", "reward": 1.0}\n{"prompt": "a", "reward": 0, "cost": 1}\n', 65),
    ('{"prompt": "a", "reward": 1.0, "cost": null}\n{"prompt": "a", "reward": 0, "cost": 1}\n', 65),
    ('{"prompt": "a", "reward": 1.0, "cost": 0}\n', 65),
    (
        '{"prompt": "a", "reward": 1, "cost": 0, "weight": 0}\n{"prompt": "a", "reward": 0, "cost": 1, "weight": 1}\n',
        65,
    ),
    ("", 65),
]


@pytest.mark.parametrize(("text", "code"), SCORES)
def test_scores_that_cannot_be_planned_from(text: str, code: int, tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text(text)
    dualign("plan", path, "--limit", "0", "--beta", "1", "--json").refused(code, "scores.jsonl")


def test_a_limit_below_what_any_policy_can_reach_exits_11_with_the_full_object(tmp_path: Path) -> None:
    world = raw_world(5)
    world["prompts"] = world["prompts"][:1]
    world["limits"]["cost0"] = -1000.0
    path = write_world(tmp_path, world)
    config = write_config(tmp_path, {"policy": {"world": "world.json"}})
    for arguments in (["solve", path], ["train", config, "--out", tmp_path / "run", "--quiet"]):
        done = dualign(*arguments, "--json")
        assert done.code == 11 and done.err == ""
        assert json.loads(done.out)["optimum"]["multipliers"]["cost0"] is None


def test_a_limit_below_every_sample_is_refused_before_training(good: Config, tmp_path: Path) -> None:
    good["constraints"][0] |= {"limit": -0.5}
    run = tmp_path / "run"
    done = dualign("train", write_config(tmp_path, good), "--out", run, "--quiet", "--json")
    assert done.code == 11 and json.loads(done.out)["verdict"] == "INFEASIBLE"
    assert "limit -0.5 of 'letter' is below the lowest cost of any reference sample, 0" in done.err
    assert not (run / "rounds").exists() and (run / "reference").is_dir()


def test_a_cost_that_never_varies_is_refused_before_training(good: Config, tmp_path: Path) -> None:
    good["constraints"][0]["scorer"]["pattern"] = "z"
    done = dualign("train", write_config(tmp_path, good), "--out", tmp_path / "run", "--quiet")
    done.refused(11, "the cost of 'letter' is the same for all samples of every prompt")
    assert not (tmp_path / "run" / "rounds").exists()


BROKEN_SCORER = """
def half(prompts, responses):
    return [float("nan") if i == 3 else 0.0 for i, _ in enumerate(responses)]
def short(prompts, responses):
    return [0.0]
def words(prompts, responses):
    return ["x" for _ in responses]
"""


@pytest.mark.parametrize("name", ["half", "short", "words"])
def test_a_scorer_that_fails_stops_the_run_and_keeps_the_samples(
    name: str, good: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_scorer.py").write_text(BROKEN_SCORER)
    monkeypatch.syspath_prepend(str(tmp_path))
    good["constraints"][0]["scorer"] = {"kind": "callable", "target": f"broken_scorer:{name}"}
    done = dualign("train", write_config(tmp_path, good), "--out", tmp_path / "run", "--quiet")
    done.refused(69, f"broken_scorer:{name}")
    assert (tmp_path / "run" / "reference" / "samples-train" / "samples.parquet").is_file()


def test_a_damaged_model_is_named(good: Config, tmp_path: Path) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    dualign("train", write_config(tmp_path, good), "--out", tmp_path / "run", "--quiet").refused(66, "cannot be read")


def test_a_template_that_the_model_lacks_is_a_mistake_of_the_config(good: Config, tmp_path: Path) -> None:
    assert letter_tokenizer().chat_template is None
    good["policy"]["template"] = "chat"
    done = dualign("train", write_config(tmp_path, good), "--out", tmp_path / "run", "--quiet")
    done.refused(65, "no chat template; use 'plain'")
