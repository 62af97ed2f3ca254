"""Prompts of `data.sources`: other names, messages, what is told of duplicates; leaks told by whole conversations."""

import json
from pathlib import Path
from typing import Any

import pytest

from dualign.config import load_config
from dualign.data.prompts import read_prompts
from dualign.errors import ConfigError
from dualign.job.inputs import load_splits
from dualign.job.measurement import slice_of
from dualign.job.phases import digest_of_prompts
from dualign.records import Prompt, Turn
from dualign.scorers.sums import in_slice
from tiny_jobs import write_config

SPLITS = {"train": 3, "tune": 3, "calibration": 3, "report": 3}


def words(number: int) -> str:
    return " ".join(f"{letter}{number}" for letter in "abcdef")


def talk(number: int) -> list[dict[str, str]]:
    turns = [("user", words(number)), ("assistant", "Yes."), ("user", "Please go on.")]
    return [{"role": role, "content": text} for role, text in turns]


def loaded(folder: Path, rows: list[dict[str, Any]], **source: object) -> Any:
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "policy": {"model": "nowhere"},
        "data": {"sources": [{"path": "p.jsonl", "splits": SPLITS, **source}]},
        "reward": {"scorer": {"kind": "length"}},
        "constraints": [{"name": "x", "scorer": {"kind": "length"}, "limit": 1.0, "cap": 2.0}],
    }
    return load_config(write_config(folder, config))


def test_renamed_messages_are_prompts(tmp_path: Path) -> None:
    rows = [{"chat": talk(k), "prompt": "not this"} for k in range(13)] + [{"chat": "A  b"}, {"chat": "a b"}]
    config = loaded(tmp_path, rows, rename={"prompt": "chat"})
    splits, notes = load_splits(config, tmp_path)
    assert {name: len(prompts) for name, prompts in splits.items()} == SPLITS
    assert all(len(prompt.history) == 2 for prompts in splits.values() for prompt in prompts if prompt.text != "A  b")
    assert "14 prompts (15 rows, 0 too long, 1 duplicates (1 of them in another letter case, white space" in notes[0]
    assert notes[-1].startswith("0 prompts dropped")


def test_a_name_that_nothing_is_read_as_is_a_mistake_of_the_config(tmp_path: Path) -> None:
    config = loaded(tmp_path, [{"chat": "a"}], rename={"promt": "chat"})
    with pytest.raises(ConfigError, match="data.sources: p.jsonl: rename: .*did you mean 'prompt'"):
        load_splits(config, tmp_path)
    with pytest.raises(Exception, match=r"--columns prompt=COLUMN \(in a config: rename\)"):
        load_splits(loaded(tmp_path, [{"chatter": 1}]), tmp_path)


def test_a_short_calibration_prompt_removes_no_conversation(tmp_path: Path) -> None:
    rows = [{"prompt": f"{words(k)} now"} for k in range(100, 111)] + [{"prompt": "please go on"}]
    given = [Prompt("Please go on.", history=(Turn("user", words(k)), Turn("assistant", "Yes."))) for k in range(20)]
    near = Prompt("Please go on", history=(Turn("user", words(3)), Turn("assistant", "Yes!")))
    config = loaded(tmp_path, rows, splits={"tune": 4, "calibration": 4, "report": 4})
    splits, notes = load_splits(config, tmp_path, given=[*given, near])
    assert len(splits["train"]) == 21 and notes[-1].startswith("0 prompts dropped")


def test_the_hash_of_prompts_knows_their_history_and_keeps_that_of_single_turns() -> None:
    from dualign.hashing import canonical_digest

    assert digest_of_prompts([Prompt("a")]) == canonical_digest([[Prompt("a").id, "a"]])
    shouted = Prompt("go on", history=(Turn("user", "HOW"), Turn("assistant", "So")))
    said = Prompt("go on", history=(Turn("user", "How"), Turn("assistant", "So")))
    assert shouted.id == said.id and digest_of_prompts([shouted]) != digest_of_prompts([said])


def test_a_flag_or_number_is_the_same_in_every_file_of_a_slice(tmp_path: Path) -> None:
    spelt = [{"risky": "True", "level": "1"}, {"risky": True, "level": 1.0}, {"risky": "TRUE", "level": "1.00"}]
    others = [{"risky": False, "level": 0}, {"risky": "True?", "level": "1.5"}, {}]
    rows = [{"prompt": words(number), **row} for number, row in enumerate([*spelt, *others])]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for where in ({"risky": "true"}, {"risky": "True"}, {"level": "1"}, {"level": "1.0"}):
        assert len(read_prompts(tmp_path / "p.jsonl", where=where).prompts) == 3
        every = read_prompts(tmp_path / "p.jsonl").prompts
        assert slice_of(every, where).tolist() == [0, 1, 2]
        assert in_slice(every, 1, where, "regex") and not in_slice(every, 3, where, "regex")
    assert not slice_of(every, {"risky": ""}).size and not slice_of(every, {"level": "01"}).size
