"""What a job is given: each file read once, and the same from memory as from files."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dualign.config import load_config
from dualign.errors import ConfigError, DataError
from dualign.job import inputs, pairs, reading
from dualign.job.checks import check, scorer_specs
from dualign.job.entry import check_only, run_config, run_inputs
from dualign.job.inputs import inputs_in_memory, read_inputs
from dualign.models import loading
from dualign.records import FloatArray, Prompt
from dualign.runs.store import read_json, read_table
from tiny_jobs import job, pair_file, write_config


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """Return a job on two prompt files, a file of pairs and a file of demonstrations."""
    made = job(tmp_path)
    pair_file(tmp_path / "pairs.jsonl", tmp_path / "benign.jsonl")
    rows = [{"prompt": f"{a}{b} {a}{b}{b}", "response": "abc"} for a in "abcdefgh" for b in "abcdefgh"]
    (tmp_path / "shown.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made["data"]["pairs"] = [{"path": "pairs.jsonl", "columns": {"label": "risky"}}]
    made["policy"]["warm_start"] = [{"demonstrations": "shown.jsonl", "mix": [{"count": 4, "target": "demonstration"}]}]
    return made


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return how often files are read and checked from now on, by what reads them."""
    counts: Counter[str] = Counter()

    def watch(module: Any, name: str, key: str = "") -> None:
        real = getattr(module, name)

        def called(*given: Any, **named: Any) -> Any:
            counts[key or f"{name} {Path(str(given[0])).name}"] += 1
            return real(*given, **named)

        monkeypatch.setattr(module, name, called)

    for module, name in ((inputs, "read_prompts"), (inputs, "read_demonstrations"), (pairs, "read")):
        watch(module, name)
    watch(pairs, "check_readings", "check of pairs")
    watch(inputs, "check_slices", "check of slices")
    watch(loading, "load_reader", "tokenizer")
    return counts


def test_each_file_is_read_once(tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    counts = counted(monkeypatch)
    loaded = load_config(write_config(tmp_path, config))
    check_only(loaded, tmp_path)
    once = {
        "read_prompts risky.jsonl": 1, "read_prompts benign.jsonl": 1, "read_demonstrations shown.jsonl": 1,
        "read pairs.jsonl": 1, "check of pairs": 1, "check of slices": 1, "tokenizer": 1,
    }  # fmt: skip
    assert counts == once
    counts.clear()
    # two tokens hold no whole sentence, so that the warm start is refused: behind all that is read
    with pytest.raises(ConfigError, match="4 examples wanted"):
        run_config(loaded, tmp_path, tmp_path / "run", lambda line: None)
    assert counts == once and (tmp_path / "run" / "config.yaml").exists()


def test_a_model_that_has_to_be_fetched_costs_a_second_reading(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is here words count for tokens, and cheap mistakes are refused without it."""
    monkeypatch.setattr(loading, "cached", lambda name: None)
    counts = counted(monkeypatch)
    loaded = load_config(write_config(tmp_path, config))
    assert any("words count for tokens" in note for note in check_only(loaded, tmp_path)["notes"])
    assert counts["tokenizer"] == 0
    with pytest.raises(ConfigError, match="4 examples wanted"):
        run_config(loaded, tmp_path, tmp_path / "run", lambda line: None)
    assert counts["tokenizer"] == 1 and counts["read pairs.jsonl"] == 3


def test_memory_and_files_give_the_same(tmp_path: Path, config: dict[str, Any]) -> None:
    del config["policy"]["warm_start"]
    config["data"]["sources"] = config["data"]["sources"][:1]
    loaded = load_config(write_config(tmp_path, config))
    files = read_inputs(loaded, tmp_path)
    rows = [json.loads(line)["prompt"] for line in (tmp_path / "risky.jsonl").read_text().splitlines()]
    prompts = [Prompt(text, {"label": "risky"}) for text in rows]
    given = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    triples = [(Prompt(row["prompt"], {"label": "risky"}), row["chosen"], row["rejected"]) for row in given]
    source = {"path": "in memory", "splits": config["data"]["sources"][0]["splits"]}
    asked = load_config(write_config(tmp_path, {**config, "data": {"sources": [source]}}))
    memory = inputs_in_memory(asked, prompts, pairs=triples)
    assert memory.splits == files.splits and memory.given.pairs == files.given.pairs
    assert list(memory.given.warnings) == [
        line.replace("pairs.jsonl", "the given pairs") for line in files.given.warnings
    ]
    assert memory.given.checks[0]["rules"] == files.given.checks[0]["rules"]
    assert memory.facts()["splits"] == files.facts()["splits"]
    by_name = inputs_in_memory(asked, {name: list(prompts) for name, prompts in files.splits.items()}, pairs=triples)
    assert by_name.splits == files.splits
    with pytest.raises(ConfigError, match="did you mean 'calibration'"):
        inputs_in_memory(asked, {"calibraton": prompts})
    with pytest.raises(ConfigError, match="no prompts for the split 'tune'"):
        inputs_in_memory(asked, {"train": prompts})
    same = [(prompt, text, text) for prompt, text, _ in triples]
    with pytest.raises(DataError, match="data.pairs: the given pairs: it is refused: rule 'every pair") as refused:
        inputs_in_memory(asked, prompts, pairs=same)
    assert "dualign data check" not in str(refused.value)


class Letters:
    """A scorer of a caller's own."""

    id, revision = "letters", "1"

    def __init__(self, direction: str, letter: str) -> None:
        self.direction, self.letter = direction, letter

    def __call__(self, prompts: Any, responses: Any) -> FloatArray:
        return np.array([float(text.count(self.letter)) for text in responses])


def test_a_job_runs_on_prompts_and_scorers_in_memory(tmp_path: Path) -> None:
    made = job(tmp_path)
    rows = [json.loads(line)["prompt"] for line in (tmp_path / "risky.jsonl").read_text().splitlines()]
    made["data"] = {
        "sources": [{"path": "in memory"}],
        "splits": {"train": 24, "tune": 30, "calibration": 50, "report": 6},
    }
    made["reward"] = {"scorer": {"kind": "in memory"}}
    made["constraints"] = [{"name": "letter", "scorer": {"kind": "in memory"}, "limit": 3.0, "cap": 8.0}]
    made["method"] = {"max_rounds": 1}
    loaded = load_config(write_config(tmp_path, made))
    with pytest.raises(ConfigError, match="in memory"):
        check(loaded)
    scorers: dict[str, Any] = {"reward": Letters("reward", "b"), "cost letter": Letters("cost", "a")}
    assert set(scorers) == set(scorer_specs(loaded))
    check(loaded, ready=scorers)
    told: list[str] = []
    given = inputs_in_memory(loaded, [Prompt(text) for text in rows], scorers=scorers)
    result, code = run_inputs(loaded, given, tmp_path / "run", told.append)
    assert code in (0, 10) and result["verdict"] == read_json(tmp_path / "run" / "certificate.json")["verdict"]
    table = read_table(tmp_path / "run" / "reference" / "scores-train" / "scores.parquet")
    assert table["cost_letter"] == [float(text.count("a")) for text in table["response"]]
    assert any(line.startswith("round 0: letter") for line in told)
    assert reading.job_reader(loaded, fetch=False) is not None
