"""`dualign train` on a real, tiny language model: every stage, then again, then after a loss."""

import json
import shutil
from pathlib import Path
from typing import Any

from command_line import dualign
from dualign.data.tables import read_table
from tiny_jobs import job, write_config


def result_of(run: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run / "result.json").read_text())
    del value["seconds"]
    return value


def assert_plan_of_the_run(run: Path) -> None:
    """`dualign plan RUN` is the run's own plan: its limit is on a slice, its beta in units of the reward's SD."""
    hint = dualign("plan", run, "--limit", "letter=0.5", "--beta", "1").err
    beta = hint.rpartition("--beta ")[2].strip()
    figures = json.loads(dualign("plan", run, "--limit", "letter=0.5", "--beta", beta, "--json", "--quiet").out)
    own = json.loads((run / "plan.json").read_text())
    assert abs(figures["multipliers"]["letter"] - own["multipliers"]["letter"]) < 1e-3 * own["multipliers"]["letter"]
    assert figures["n_prompts"] == 36 and own["multipliers"]["letter"] > 0.01
    risky = [row for row in read_table(run / "scores" / "reference.parquet").rows if row.values["inside_letter"]]
    assert len(risky) == 24 * 4
    mean = sum(row.values["cost_letter"] for row in risky) / len(risky)
    assert abs(figures["reference"]["costs"]["letter"] - mean) < 1e-12
    untold = dualign("plan", run / "reference/scores-train/scores.parquet", "--limit", "letter=0.5", "--beta", beta)
    untold.refused(65, "'letter' is about a slice of the prompts (where)")
    dualign("plan", run / "rounds", "--limit", "letter=0.5", "--beta", beta).refused(66, "is a folder without")


def test_a_job_trains_certifies_reports_and_resumes(tmp_path: Path) -> None:
    config, run = write_config(tmp_path, job(tmp_path)), tmp_path / "run"
    first = dualign("train", config, "--out", run, "--json", "--quiet")
    assert first.code in (0, 10, 11), first
    told = json.loads(first.out)
    assert told["verdict"] and len(told["iterates"]) == 2
    assert "<h1" in (run / "report.html").read_text()
    before = result_of(run)
    assert before["iterates"][0]["multipliers"] == {"letter": 0.0}
    assert before["iterates"][1]["costs"]["letter"] < before["iterates"][0]["costs"]["letter"]

    again = dualign("train", config, "--out", run, "--json", "--quiet")
    assert again.code == first.code and result_of(run) == before

    assert_plan_of_the_run(run)

    shutil.rmtree(run / "rounds" / "01" / "fit")
    shutil.rmtree(run / "rounds" / "01" / "samples-tune")
    restored = dualign("train", config, "--out", run, "--json", "--quiet")
    assert restored.code == first.code and result_of(run) == before


def test_a_model_that_cannot_be_read_is_refused_before_any_answer_is_sampled(tmp_path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from dualign.models.loading import save_model
    from tiny_jobs import letter_tokenizer

    config, tokenizer = job(tmp_path), letter_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "eos_token_id": 2}
    capped = Gemma2ForCausalLM(Gemma2Config(vocab_size=len(tokenizer), **sizes, **heads))
    save_model(capped.eval(), tokenizer, tmp_path / "capped")
    config["policy"]["model"] = str(tmp_path / "capped")
    for words in (["--dry-run"], ["--quiet"]):
        ended = dualign("train", write_config(tmp_path, config), "--out", tmp_path / "run", *words)
        ended.refused(65, "changes its logits after the output head (final_logit_softcapping: 30.0)")
        assert not (tmp_path / "run").exists()
