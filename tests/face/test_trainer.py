"""``CDPOTrainer`` and ``CDPOConfig`` as a user of TRL uses them."""

from pathlib import Path
from typing import Any

import pytest

import dualign
import memory_jobs as letters
from dualign.errors import ArgumentError, DataError, UsageError

SECTIONS = {"policy": {"template": "plain"}, "data": letters.SECTIONS["data"], "training": {"lora_r": 4}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("trained")
    letters.model_in(made)
    return made


def config(out: Path, **changes: Any) -> dualign.CDPOConfig:
    small: dict[str, Any] = {
        "learning_rate": 2e-2, "num_train_epochs": 2, "max_prompt_length": 64, "max_length": 72, "bf16": False,
        "max_rounds": 2, "seed": 3, "sections": SECTIONS,
    }  # fmt: skip
    return dualign.CDPOConfig(output_dir=out, **{**small, **changes})


def trainer(folder: Path, args: dualign.CDPOConfig, data: Any, **changes: Any) -> dualign.CDPOTrainer:
    given: dict[str, Any] = {"reward": letters.length, "limits": letters.limits(), **changes}
    return dualign.CDPOTrainer(model=folder / "model", args=args, train_dataset=data, **given)


def test_training_returns_what_trl_returns_and_the_run_is_there(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"prompt": letters.prompts_of(folder)})
    made = trainer(folder, config(folder / "out"), data)
    with pytest.raises(UsageError, match=r"call train\(\) first"):
        _ = made.run
    assert not (folder / "out").exists()
    done = made.train()
    assert done.global_step == sum(row["steps"] for row in made.run.result["iterates"]) > 0
    assert done.training_loss is not None and 0 < done.training_loss < 2
    assert {"train_reward", "train_cost_letter", "train_kl", "train_multiplier_letter"} == set(done.metrics)
    found = made.evaluate()
    assert found["eval_reward"] == made.run.selected["reward"]
    assert made.certificate is not None
    assert found["eval_bound_letter"] == made.certificate.upper_bounds["letter"]
    assert made.run.beta_normalised == 0.3 and made.run.beta_raw != 0.3
    saved = made.save_model(folder / "saved")
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {p.name for p in saved.iterdir()}


def test_max_steps_are_the_steps_of_every_fit_and_held_prompts_are_held(folder: Path, tmp_path: Path) -> None:
    args = config(tmp_path / "out", max_steps=3, max_rounds=1, num_generations=2)
    data, held = letters.prompts_of(folder, 12, 5), letters.prompts_of(folder, 80, 6)
    made = trainer(folder, args, data, eval_dataset=held)
    assert made.train().global_step == 3
    splits = made.run.files.data["splits"]
    assert splits["train"] == 12 and splits["tune"] + splits["calibration"] + splits["report"] == 80


def test_given_pairs_are_trained_on(folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": text, "chosen": "abcdefg", "rejected": "bc"} for text in letters.prompts_of(folder, 120, 8)]
    made = trainer(folder, config(tmp_path / "out", max_rounds=1), rows)
    made.train()
    assert not (tmp_path / "out" / "reference" / "samples-train").exists()
    assert made.run.files.data["splits"]["tune"] == 30


def test_every_field_reaches_the_config() -> None:
    args = dualign.CDPOConfig(
        output_dir="runs/a", beta=0.2, learning_rate=1e-5, max_steps=7, per_device_train_batch_size=2,
        gradient_accumulation_steps=3, warmup_steps=1, lr_scheduler_type="cosine", max_grad_norm=0.5, weight_decay=0.1,
        bf16=True, max_prompt_length=100, max_completion_length=50, num_generations=8, temperature=0.7,
        generation_batch_size=16, loss_type="ipo", method="dpo", max_rounds=3, confidence=0.9, seed=4,
    )  # fmt: skip
    found = args.as_sections()
    assert found["training"] == {
        "beta": 0.2, "learning_rate": 1e-5, "num_train_epochs": 1.0, "max_steps": 7, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3, "warmup_steps": 1, "lr_scheduler_type": "cosine", "max_grad_norm": 0.5,
        "weight_decay": 0.1, "dtype": "bfloat16",
    }  # fmt: skip
    assert found["sampling"] == {
        "responses_per_prompt": 8, "temperature": 0.7, "batch_size": 16, "max_new_tokens": 50,
    }  # fmt: skip
    assert found["policy"] == {"max_prompt_tokens": 100}
    assert found["method"] == {"name": "dpo", "loss": "ipo", "max_rounds": 3}
    assert (found["certificate"], found["run"]) == ({"confidence": 0.9}, {"seed": 4, "name": "a"})
    assert dualign.CDPOConfig("a", loss_type="sigmoid").as_sections()["method"]["loss"] == "dpo"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_length": 72, "max_prompt_length": None}, "max_length: give it with max_prompt_length"),
        ({"max_completion_length": 8}, "max_length: give it with max_prompt_length and without"),
        ({"beta": -1}, "training.beta"),
        ({"loss_type": "sigmoyd"}, "method.loss"),
        ({"sections": {"trainig": {}}}, "unknown key 'trainig'; did you mean 'training'"),
        ({"sections": {"policy": 3}}, "policy: expected a mapping"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    changes: dict[str, Any], said: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(dualign.DualignError, match=said) as caught:
        trainer(folder, config(tmp_path / "out", **changes), ["a b c"])
    assert "\n" not in str(caught.value)


def test_data_that_are_none(folder: Path, tmp_path: Path) -> None:
    with pytest.raises((ArgumentError, DataError), match="train_dataset"):
        trainer(folder, config(tmp_path / "out"), [])
