"""The page on Python: every block runs, one after the other, and none is longer than twelve lines."""

import re
from pathlib import Path
from typing import Any

import pytest

import dualign
from tiny_jobs import letter_tokenizer, prompt_file

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
LETTERS = "abcdefghijklmnopqrstuvwxyzHIWN?.,' "


def tiny_model(folder: Path) -> None:
    """Write a random model of letters whose chat template needs no further setting."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from dualign.models.loading import save_model

    tokenizer = letter_tokenizer(LETTERS)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    save_model(model.eval(), tokenizer, folder)


def test_no_block_is_longer_than_twelve_lines() -> None:
    assert len(BLOCKS) > 12
    for block in BLOCKS:
        assert len([line for line in block.splitlines() if line.strip()]) <= 12, block


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model(tmp_path / "org" / "model")
    rows = prompt_file(tmp_path / "p.jsonl", 60, seed=1).read_text().splitlines()
    space: dict[str, Any] = {"__name__": "page", "prompts": [row.split('"')[3] for row in rows]}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"python.md block {number}", "exec"), space)
    assert {"runs/a", "runs/b", "runs/c"} <= {str(p.relative_to(tmp_path)) for p in tmp_path.glob("runs/*")}
    assert (tmp_path / "adapter" / "adapter_config.json").is_file() and space["page"].stat().st_size > 10_000
    assert len(space["texts"]) == 2 and space["same"].verdict == space["run"].verdict


def test_every_name_of_the_face_is_on_the_page_or_of_a_result() -> None:
    results = {"Comparison", "Constraint", "Evaluation", "Group", "Iterate", "Prompt", "Response", "__version__"}
    results |= {"Plan", "Solution", "Run", "TrainedPolicy", "Certificate"}
    assert all(f"dualign.{name}" in PAGE for name in set(dualign.__all__) - results)
