"""``dualign sample``: rows out, the same rows again, mistakes before the model is loaded."""

import json

import pytest

from dualign.cli.sample import sample
from dualign.engine.loading import save_model
from dualign.errors import UsageError
from sampling_parts import tiny_model, tiny_tokenizer


def test_rows_and_summary(tmp_path, capsys):
    save_model(tiny_model(dtype="float32"), tiny_tokenizer(), tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a b"}\n{"prompt": "c"}\n')
    for name in ("one", "two"):
        sample(
            str(tmp_path / "model"),
            tmp_path / "prompts.jsonl",
            tmp_path / f"{name}.jsonl",
            n=3,
            max_new_tokens=5,
            as_json=True,
        )
    figures = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (figures["prompts"], figures["responses"]) == (2, 6)
    text = (tmp_path / "one.jsonl").read_text()
    assert text == (tmp_path / "two.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [(row["prompt"], row["sample"]) for row in rows] == [(p, i) for p in ("a b", "c") for i in range(3)]
    assert all(row["log_prob"] < 0 and 1 <= len(row["tokens"]) <= 5 for row in rows)


def test_output_must_not_be_the_input(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(UsageError, match="is the file of the prompts"):
        sample("nowhere", path, path)
    with pytest.raises(UsageError, match="ends in .jsonl"):
        sample("nowhere", path, tmp_path / "out.csv")
