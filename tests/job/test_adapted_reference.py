"""``policy.adapter``: the reference of a job is the base model with somebody's adapter merged into it."""

import json
import shutil
from pathlib import Path

import peft
import pyarrow.parquet as parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from command_line import dualign
from dualign.models.loading import load_language_model
from dualign.records import Prompt
from engine_parts import independent_log_prob
from tiny_jobs import job, write_config

pytestmark = pytest.mark.filterwarnings("ignore")


def adapter_of(base: Path, folder: Path, **settings) -> Path:
    """Return ``folder`` with an adapter of the model of ``base`` that changes its layers and its head."""
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        **{"r": 4, "target_modules": ["q_proj", "up_proj"], "modules_to_save": ["lm_head"], **settings},
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(4)
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        for value in model.parameters():
            if value.requires_grad:
                value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a finished job, its config's path, and how it ended.

    The adapter was made for a copy of the model elsewhere.
    """
    folder = tmp_path_factory.mktemp("adapted")
    config = job(folder)
    shutil.copytree(folder / "model", folder / "source")
    config["policy"]["adapter"] = str(adapter_of(folder / "source", folder / "adapter"))
    config["method"] |= {"max_rounds": 1, "start": 0.0}
    path = write_config(folder, config)
    return folder, path, dualign("train", path, "--out", folder / "run")


def drawn(run: Path, where: str):
    return parquet.read_table(run / where / "samples.parquet").to_pylist()


def check_samples(rows, texts, model, base) -> None:
    """Check the log-probability that stands beside every draw against what PEFT itself gives it."""
    prompts = {Prompt(text).id: tuple(base.template(Prompt(text))) for text in texts}
    assert rows
    for row in rows:
        prompt = prompts[row["prompt_id"]]
        with torch.no_grad():
            expected = float(independent_log_prob(model, prompt, tuple(row["tokens"])))
        assert row["log_prob"] == pytest.approx(expected, abs=1e-4)


def test_reference_and_policies_are_those_of_peft(trained):
    folder, _, done = trained
    assert done.code in (0, 10, 11), done
    run, base = folder / "run", load_language_model(folder / "model")
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "model"), folder / "adapter")
    texts = [json.loads(line)["prompt"] for line in (folder / "risky.jsonl").read_text().splitlines()]
    check_samples(drawn(run, "reference/samples-tune"), texts, theirs.eval(), base)
    # a policy's adapter names the model that it belongs on, and plain PEFT reads it there
    policy = run / "rounds" / "00" / "fit" / "policy"
    named = json.loads((policy / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(named) == run / "policy" / "adapter" / "model"
    fitted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(named), policy)
    check_samples(drawn(run, "rounds/00/samples-tune"), texts, fitted.eval(), base)


def test_it_resumes_and_another_adapter_is_another_reference(trained):
    folder, path, done = trained
    run = folder / "run"
    result = (run / "result.json").read_text()
    assert dualign("train", path, "--out", run).code == done.code
    assert json.loads((run / "result.json").read_text())["iterates"] == json.loads(result)["iterates"]
    before = drawn(run, "reference/samples-tune")
    shutil.copytree(run, folder / "other")
    weights = folder / "adapter" / "adapter_model.safetensors"
    kept = weights.read_bytes()
    save_file({key: value * 1.5 for key, value in load_file(weights).items()}, weights)
    again = dualign("train", path, "--out", folder / "other", "--json", "--quiet")
    weights.write_bytes(kept)
    assert again.code in (0, 10, 11, 12), again
    after = drawn(folder / "other", "reference/samples-tune")
    assert [row["log_prob"] for row in before] != [row["log_prob"] for row in after]


def test_another_base_is_said_in_dry_run_terminal_and_report(trained):
    folder, path, done = trained
    said = f"adapter {folder / 'adapter'}: was made for the base model {str(folder / 'source')!r}"
    assert said in dualign("train", path, "--out", folder / "run", "--dry-run").out
    assert f"warning: {said}" in done.err
    notes = json.loads((folder / "run" / "data" / "summary.json").read_text())["notes"]
    assert any(said in note for note in notes)


def test_what_cannot_be_a_reference_is_refused_before_anything_is_written(trained, tmp_path):
    folder, path, _ = trained
    run = tmp_path / "run"
    for kind, code, said in (
        ("null", 66, "holds a PEFT adapter alone; name its base model (it names"),
        (tmp_path / "nowhere", 66, "no adapter_config.json is there"),
    ):
        model = folder / "adapter" if kind == "null" else folder / "model"
        settings = ("--set", f"policy.model={model}", "--set", f"policy.adapter={kind}")
        for dry in ((), ("--dry-run",)):
            dualign("train", path, "--out", run, *settings, *dry, "--quiet").refused(code, said)
    settings = ("--set", "policy.model=null", "--set", "policy.world=assistant")
    dualign("train", path, "--out", run, *settings, "--quiet").refused(2, "a world has no weights for it")
    peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2).save_pretrained(tmp_path / "prefix")
    save_file({"x": torch.zeros(1)}, tmp_path / "prefix" / "adapter_model.safetensors")
    settings = ("--set", f"policy.adapter={tmp_path / 'prefix'}")
    dualign("train", path, "--out", run, *settings, "--dry-run").refused(66, "PREFIX_TUNING")
    assert not run.exists()


def test_sample_with_an_adapter_and_with_a_policy_of_the_run(trained, tmp_path):
    folder, _, _ = trained
    run, base = folder / "run", load_language_model(folder / "model")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "abc"}\n{"prompt": "h i"}\n')
    merged = run / "policy" / "adapter" / "model"
    policy = run / "rounds" / "00" / "fit" / "policy"
    for model, adapter in ((folder / "source", folder / "adapter"), (merged, policy)):
        theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter).eval()
        out = tmp_path / f"{adapter.name}.jsonl"
        done = dualign("sample", model, prompts, "--adapter", adapter, "--out", out, "--max-new-tokens", 8, "-n", 2)
        assert done.code == 0 and "made for the base model" not in done.err
        check_samples([json.loads(line) for line in out.read_text().splitlines()], ["abc", "h i"], theirs, base)
    out = tmp_path / "out.jsonl"
    said = f"was made for the base model {str(merged)!r}"
    asked = (folder / "model", prompts, "--adapter", policy, "--out", out, "--max-new-tokens", 8)
    assert said in dualign("sample", *asked).err
    silent = dualign("sample", *asked, "--quiet", "--json")
    assert silent.err == "" and said in json.loads(silent.out)["notes"][0]
    dualign("sample", merged, prompts, "--adapter", tmp_path, "--out", out).refused(66, "holds neither")
    dualign("sample", policy, prompts, "--out", out).refused(66, "policy.adapter", "--adapter FOLDER")
