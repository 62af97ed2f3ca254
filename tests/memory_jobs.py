"""A job from memory that takes seconds: a model of single letters, prompts, a reward and a cost, as a notebook has."""

import json
from pathlib import Path
from typing import Any

import dualign
from tiny_jobs import letter_model, prompt_file

SECTIONS: dict[str, Any] = {
    "policy": {"template": "plain", "max_prompt_tokens": 64},
    "data": {"splits": {"train": 24, "tune": 30, "calibration": 50, "report": 6}},
    "training": {"learning_rate": 2e-2, "num_train_epochs": 2, "lora_r": 4, "dtype": "float32"},
    "sampling": {"max_new_tokens": 8},
}
"""Sections of the config that make it small."""
METHOD = {"start": 8.0, "max_rounds": 2}


def length(prompts: list[str], responses: list[str]) -> list[float]:
    """Return the reward: longer is better."""
    assert len(prompts) == len(responses)
    return [float(len(response)) for response in responses]


def letter_a(prompts: list[str], responses: list[str]) -> list[float]:
    """Return the cost: 1 where the answer holds an a."""
    return [float("a" in response) for response in responses]


def model_in(folder: Path) -> Path:
    """Return the model's folder."""
    return letter_model(folder / "model")


def prompts_of(folder: Path, count: int = 120, seed: int = 1) -> list[str]:
    """Return distinct prompts."""
    lines = prompt_file(folder / f"prompts-{seed}.jsonl", count, seed).read_text().splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def limits(**changes: Any) -> list[dualign.Limit]:
    """Return the one limit of the job."""
    return [dualign.Limit("letter", changes.pop("scorer", letter_a), **{"at_most": 0.5, "cap": 1, **changes})]


def align(model: Any, prompts: Any, out: Path, **changes: Any) -> dualign.Run:
    """Return the run of the small job."""
    sections = {**SECTIONS, "method": METHOD}
    given: dict[str, Any] = {"reward": length, "limits": limits(), "seed": 3, "out": out, **sections, **changes}
    return dualign.align(model, prompts, **given)
