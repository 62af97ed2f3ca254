"""``align``, ``compare`` and what they return, as a notebook uses them; against the same job from files."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import dualign
import memory_jobs as letters
from command_line import dualign as command
from dualign.errors import ArgumentError, ConfigError, DataError, MissingError, ScorerError
from dualign.runs.journal import read_events
from dualign.runs.store import read_json, verify
from tiny_jobs import write_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("aligned")
    letters.model_in(made)
    return made


@pytest.fixture(scope="module")
def prompts(folder: Path) -> list[str]:
    return letters.prompts_of(folder)


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def run(folder: Path, prompts: list[str], told: list[str]) -> dualign.Run:
    return letters.align(folder / "model", prompts, folder / "run", progress=told.append)


def test_a_run_says_what_a_notebook_asks(run: dualign.Run, told: list[str]) -> None:
    assert run.verdict == run.result["verdict"] == run.certificate.verdict  # type: ignore[union-attr]
    assert run.certificate is not None and set(run.certificate.upper_bounds) == {"letter"}
    assert run.beta_normalised == 0.3
    frontier = pd.DataFrame(run.frontier())
    assert frontier["name"][0] == "reference" and len(frontier) == len(run.result["iterates"]) + 1
    assert {"reward", "costs", "kl", "multipliers"} <= set(frontier)
    assert run.report().read_text().startswith("<!doctype html>") or run.report().stat().st_size > 10_000
    assert any(line.startswith("round 1: letter") for line in told)
    assert run.verdict in str(run) and repr(run) == f"<Run {run.folder}: {run.verdict}>"
    assert [fault for fault in verify(run.folder) if fault.kind != "unlisted"] == []


def test_the_same_job_from_files_gives_the_same_figures(run: dualign.Run, folder: Path, prompts: list[str]) -> None:
    (folder / "p.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    config: dict[str, Any] = copy.deepcopy(letters.SECTIONS)
    config["policy"]["model"] = str(folder / "model")
    config["data"]["sources"] = [{"path": "p.jsonl"}]
    config["reward"] = {"scorer": {"kind": "length", "unit": "characters"}}
    config["constraints"] = [{"name": "letter", "scorer": {"kind": "regex", "pattern": "a"}, "limit": 0.5, "cap": 1.0}]
    config |= {"method": letters.METHOD, "run": {"seed": 3, "name": "run"}}
    config["training"]["beta"] = 0.3
    done = command("train", write_config(folder, config), "--out", folder / "files", "--json", "--quiet")
    found = json.loads(done.out)
    for key in ("verdict", "limits", "selected", "iterates", "reference", "beta_raw", "flip_multiplier"):
        assert found[key] == run.result[key], key


def test_the_policy_answers_and_is_saved_for_peft(run: dualign.Run, prompts: list[str], tmp_path: Path) -> None:
    one = run.policy.generate(prompts[:3])
    assert len(one) == 3 and all(isinstance(text, str) for text in one)
    assert run.policy.generate(prompts[:3]) == one
    several = run.policy.generate([prompts[0], prompts[0]], 2, seed=1, max_new_tokens=4)
    assert [len(row) for row in several] == [2, 2] and max(len(text) for row in several for text in row) <= 4
    assert len(run.policy.generate(prompts[0])) == 1
    assert all(response.log_prob < 0 for row in run.policy.responses(prompts[:2]) for response in row)
    with pytest.raises(ArgumentError, match="n: must be a whole number above 0"):
        run.policy.generate(prompts[:1], 0)
    saved = run.policy.save(tmp_path / "saved")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(run.policy.config.policy.model)
    assert PeftModel.from_pretrained(base, str(saved)).peft_config["default"].r == 4


def test_a_run_is_loaded_again_and_damage_is_named(run: dualign.Run, tmp_path: Path) -> None:
    again = dualign.load_run(str(run.folder))
    assert again.result == run.result and again.policy.adapter == run.policy.adapter
    with pytest.raises(MissingError, match="no such run directory"):
        dualign.load_run(tmp_path / "nowhere")
    weights = next(run.policy.adapter.glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(DataError, match=f"{weights.name}.* is damaged"):
            _ = dualign.load_run(run.folder).policy
    finally:
        weights.write_bytes(whole)


def test_the_config_tells_what_came_from_memory_by_its_hash(run: dualign.Run) -> None:
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert config["data"]["sources"][0]["path"].startswith("memory:")
    scorer = config["constraints"][0]["scorer"]
    assert (scorer["kind"], scorer["id"]) == ("memory", "memory_jobs:letter_a") and len(scorer["revision"]) == 16
    assert config["run"] == {"name": "run", "seed": 3}


def test_the_same_call_goes_on_and_another_one_is_refused(run: dualign.Run, folder: Path, prompts: list[str]) -> None:
    def events() -> list[str]:
        return [str(event["event"]) for event in read_events(run.folder)]

    before = events()
    again = letters.align(folder / "model", pd.DataFrame({"prompt": prompts[::-1]}), run.folder)
    assert again.result["iterates"] == run.result["iterates"] and "started" not in events()[len(before) :]
    with pytest.raises(DataError, match=r"another config: key data\.sources\[0\]\.path"):
        letters.align(folder / "model", prompts[:-1], run.folder)

    def other(prompts: list[str], responses: list[str]) -> list[float]:
        return [float("b" in response) for response in responses]

    with pytest.raises(DataError, match="another config: key reward.scorer"):
        letters.align(folder / "model", prompts, run.folder, reward=other)
    with pytest.raises(DataError, match="another config: key training.beta"):
        letters.align(folder / "model", prompts, run.folder, beta=0.4)


def test_a_loaded_model_is_the_model_of_its_folder(
    run: dualign.Run, folder: Path, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model.config.pad_token_id = None
    found = letters.align(model, prompts, folder / "loaded", processing_class=tokenizer)
    assert found.result["iterates"] == run.result["iterates"]
    assert model.config.pad_token_id is None
    config = yaml.safe_load((found.folder / "config.yaml").read_text())
    assert Path(config["policy"]["model"]).parent == folder / "cache" / "dualign"
    again = letters.align((model, tokenizer), prompts, folder / "loaded")
    assert again.result["iterates"] == run.result["iterates"]
    assert len(list((folder / "cache" / "dualign").iterdir())) == 1


def test_slices_pairs_and_other_forms_of_scorers(folder: Path, prompts: list[str], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": text, "label": "risky" if k % 2 else "benign"} for k, text in enumerate(prompts)]
    asked = [dualign.Prompt(text, {"label": "risky"}) for text in letters.prompts_of(tmp_path, 24, 7)]
    pairs = [(prompt, "abcdefg", "bc") for prompt in asked]

    class Words:
        id, revision, direction = "words", "1", "reward"

        def __call__(self, prompts: Any, responses: Any) -> Any:
            assert all(isinstance(prompt, dualign.Prompt) for prompt in prompts)
            return np.array([len(text) for text in responses])

    run = letters.align(
        folder / "model",
        datasets.Dataset.from_list(rows),
        tmp_path / "run",
        pairs=pairs,
        reward=Words(),
        limits=[
            dualign.Limit("letter", {"kind": "regex", "pattern": "a"}, at_most=0.9, cap=1, where={"label": "risky"})
        ],
        metrics={"refusal": "refusal-phrase"},
        judges={"letter": letters.letter_a},
        data={"splits": {"tune": 40, "calibration": 50, "report": 12}},
    )
    assert run.result["judges"]["letter"]
    answers = pd.DataFrame([dict(row) for row in run.files.answers])
    assert {"refusal", "slice"} <= set(answers) and set(answers["slice"]) == {"benign", "risky"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"limits": []}, "constraints: name at least one limit"),
        ({"limits": ["letter"]}, r"limits: each is a dualign.Limit\(name, scorer, at_most=...\); given str"),
        ({"limits": letters.limits(cap=None)}, "constraints.letter.cap: missing"),
        ({"limits": letters.limits(at_most=1)}, "below its cap 1"),
        ({"limits": letters.limits(where={"label": "rsky"})}, "no train prompt has"),
        ({"reward": 3}, "reward: scorer: given int; a function"),
        ({"reward": "lenght"}, "unknown 'lenght'; did you mean 'length'"),
        ({"method": "c-dop"}, "did you mean 'c-dpo'"),
        ({"beta": 0}, "training.beta"),
        ({"confidence": 95}, "certificate.confidence"),
        ({"training": {"lora_rank": 4}}, "align: training: unknown key 'lora_rank'; did you mean 'lora_r'"),
        ({"trianing": {"lora_r": 4}}, "align: unknown key 'trianing'; did you mean 'training'"),
        ({"training": 4}, "training: expected a mapping"),
        ({"peft_config": 4}, "peft_config: a peft.LoraConfig is needed; given int"),
        ({"processing_class": 4}, "processing_class: goes with a loaded model"),
        ({"pairs": [{"prompt": "a"}]}, "pairs"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    changes: dict[str, Any], said: str, folder: Path, prompts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(dualign.DualignError, match=said) as caught:
        letters.align(folder / "model", prompts, tmp_path / "run", **changes)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "prompts", "said"),
    [
        (4, ["a"], "model: expected a folder, a hub id, or a loaded model"),
        ("nowhere", ["a"], "model 'nowhere'"),
        (None, "one text", "prompts: rows are needed; given str"),
        (None, [], "prompts"),
        (None, [4], "prompts"),
        (None, {"train": ["a b c"]}, "no prompts for the split 'tune'"),
        (None, {"train": ["a b c"], "test": ["d e f"]}, "prompts: unknown split 'test'; "),
        (None, ["a b c", "d e f"], "prompts"),
    ],
)
def test_models_and_prompts_that_are_none(model: Any, prompts: Any, said: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(dualign.DualignError, match=said):
        letters.align(folder / "model" if model is None else model, prompts, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_scorer_that_fails_is_named(folder: Path, prompts: list[str], tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="cannot import 'no_such_module'"):
        letters.align(folder / "model", prompts, tmp_path / "run", reward="no_such_module:f")

    def short(prompts: list[str], responses: list[str]) -> list[float]:
        return [0.0]

    with pytest.raises(ScorerError, match="short: returned shape"):
        letters.align(folder / "model", prompts, tmp_path / "short", reward=short)


def test_lora_is_taken_over_and_what_is_not_honoured_is_refused(
    folder: Path, prompts: list[str], tmp_path: Path
) -> None:
    from peft import LoraConfig

    sections = copy.deepcopy(letters.SECTIONS)
    del sections["training"]["lora_r"]
    lora = LoraConfig(r=2, lora_alpha=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    run = letters.align(
        folder / "model", prompts, tmp_path / "run", peft_config=lora, **sections, method={"max_rounds": 1}
    )
    made = read_json(run.policy.adapter / "adapter_config.json")
    assert (made["r"], made["lora_alpha"], made["lora_dropout"]) == (2, 4, 0.1)
    assert all(name.endswith(("q_proj", "v_proj")) for name in made["target_modules"])
    with pytest.raises(ArgumentError, match="peft_config: use_dora=True has no counterpart here"):
        letters.align(folder / "model", prompts, tmp_path / "other", peft_config=LoraConfig(use_dora=True))
    with pytest.raises((ArgumentError, ConfigError), match="target_modules"):
        letters.align(folder / "model", prompts, tmp_path / "third", peft_config=LoraConfig(target_modules=["nothing"]))


def test_a_comparison_from_memory_has_the_table_of_the_command(
    folder: Path, prompts: list[str], tmp_path: Path
) -> None:
    sections = {**letters.SECTIONS, "method": {"start": 8.0, "max_rounds": 1}}
    given: dict[str, Any] = {"reward": letters.length, "limits": letters.limits(), **sections}
    told: list[str] = []
    found = dualign.compare(
        folder / "model",
        prompts,
        methods=["dpo", "safedpo"],
        seeds=[3],
        out=tmp_path / "cells",
        progress=told.append,
        **given,
    )
    assert [row["method"] for row in found.rows] == ["dpo", "safedpo"] and "| dpo | " in str(found)
    assert (found.folder / "compare.html").is_file() and found.figures["failed"] == []
    assert found.run("dpo", 3).result["run"] == "dpo-seed-3"
    reused = {e["target"] for e in read_events(found.folder / "safedpo-seed-3") if e["event"] == "reused"}
    assert "reference/samples-train" in reused
    again = dualign.compare(
        folder / "model", prompts, methods=["dpo"], seeds=[3], out=tmp_path / "cells", progress=told.append, **given
    )
    assert again.rows[0]["reward"] == found.rows[0]["reward"] and any("finished before" in line for line in told)
    with pytest.raises(ArgumentError, match="none twice"):
        dualign.compare(folder / "model", prompts, methods=["dpo", "dpo"], **given)
