"""Near-copies in a job: on one side of the splits, one unit of the certificate, counted where they are told."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dualign.certificate.certify import certify
from dualign.certificate.claim import Requirement, Terms
from dualign.certificate.held_out import Costs
from dualign.config import Config
from dualign.errors import ConfigError, DataError
from dualign.job.inputs import load_splits, units
from dualign.job.measurement import unit_means
from dualign.job.search import prepare
from dualign.maths import bounds
from dualign.records import Prompt
from gibbs_jobs import gibbs_config, gibbs_job, prompts, with_splits

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("l", "mer", "nis", "rod", "tuk", "vex")]


def questions(count: int, copies: int, seed: int = 0) -> list[str]:
    """Return ``count`` unlike questions, each followed by copies with one more word."""
    generator = np.random.default_rng(seed)
    base = [" ".join(generator.choice(WORDS, 10, replace=False)) for _ in range(count)]
    return [f"{text} x{copy}" if copy else text for text in base for copy in range(copies)]


def config(folder: Path, rows: list[dict[str, Any]], **data: object) -> Config:
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": "p.jsonl", "splits": {"train": 60, "tune": 30, "report": 30, "calibration": 90}}
    return Config.model_validate(
        {
            "policy": {"model": "none"},
            "data": {"sources": [source], **data},
            "reward": {"scorer": {"kind": "length"}},
            "constraints": [{"name": "harm", "scorer": {"kind": "length"}, "limit": 0.0, "cap": 60.0}],
            "run": {"seed": 1},
        }
    )


def base_of(prompt: Prompt) -> str:
    return prompt.text.split(" x")[0]


@pytest.mark.parametrize("copies", [3, 10])
def test_copies_are_on_one_side_and_one_unit(tmp_path: Path, copies: int) -> None:
    rows = [{"prompt": text} for text in questions(300 // copies, copies)]
    splits, notes = load_splits(config(tmp_path, rows), tmp_path)
    sides: dict[str, set[str]] = {}
    for name, members in splits.items():
        for prompt in members:
            sides.setdefault(base_of(prompt), set()).add(name)
    assert all(len(found) == 1 for found in sides.values())
    calibration = splits["calibration"]
    assert len({prompt.cluster for prompt in calibration}) == len({base_of(prompt) for prompt in calibration})
    assert units(calibration) == math.ceil(90 / copies)
    assert f"calibration: 90 prompts are {units(calibration)} units" in " ".join(notes)


def test_none_is_each_prompt_alone_and_a_column_names_the_unit(tmp_path: Path) -> None:
    texts = questions(100, 3)
    rows = [{"prompt": text, "document": f"d{k % 50}"} for k, text in enumerate(texts)]
    alone, notes = load_splits(config(tmp_path, rows, cluster="none"), tmp_path)
    assert units(alone["calibration"]) == 90 and not [note for note in notes if "units" in note]
    assert "the same prompt stands in a later split" in " ".join(notes)
    by_column, notes = load_splits(config(tmp_path, rows, cluster="document"), tmp_path)
    assert {prompt.cluster for prompt in by_column["calibration"]} == {
        prompt.columns["document"] for prompt in by_column["calibration"]
    }
    documents = [{prompt.columns["document"] for prompt in members} for members in by_column.values()]
    assert sum(map(len, documents)) == len(set().union(*documents))
    with pytest.raises(ConfigError, match=r"data\.cluster: 1 of 300 prompts have no column 'document'.*columns are"):
        load_splits(config(tmp_path, [*rows[:-1], {"prompt": texts[-1], "other": "o"}], cluster="document"), tmp_path)


def test_a_prompt_lies_in_exactly_one_cluster_that_has_a_name(tmp_path: Path) -> None:
    rows = [{"prompt": text, "document": f"d{k}"} for k, text in enumerate(questions(100, 3))]
    with pytest.raises(ConfigError, match=r"'document' holds nothing for .*line 3 "):
        load_splits(
            config(tmp_path, [*rows[:2], {**rows[2], "document": " "}, *rows[3:]], cluster="document"), tmp_path
        )
    again = {"prompt": rows[0]["prompt"].upper(), "document": "d1"}
    with pytest.raises(ConfigError, match=r"line 301 .*'d1' here and in 'd0' at .*line 1 .*exactly one cluster"):
        load_splits(config(tmp_path, [*rows, again], cluster="document"), tmp_path)


def test_a_grid_of_one_template_names_the_key_that_mends_it(tmp_path: Path) -> None:
    frame = "please write one short and friendly answer to the following question about the colour"
    with pytest.raises(DataError, match=r"in 1 clusters .*data\.cluster"):
        load_splits(config(tmp_path, [{"prompt": f"{frame} {word}"} for word in WORDS]), tmp_path)


def test_false_certification_with_near_copies_through_the_splits_of_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Costs at the limit that copies share: at most delta with the clusters of the job, far above it without."""
    rows = [{"prompt": text} for text in questions(30, 10)]
    calibration = load_splits(config(tmp_path, rows), tmp_path)[0]["calibration"]
    monkeypatch.setattr(bounds, "betting_upper_bound", lambda *a, **k: -math.inf)  # the e-value alone: certifies more
    owners = {base: k for k, base in enumerate(dict.fromkeys(map(base_of, calibration)))}
    terms, ids = Terms({"harm": Requirement(0.0, 60.0)}), [prompt.id for prompt in calibration]
    wrong = {"job": 0, "alone": 0}
    for repetition in range(150):
        generator = np.random.default_rng([7, repetition])
        shared = generator.normal(0, 12, len(owners))
        values = np.array([shared[owners[base_of(p)]] for p in calibration]) + generator.normal(0, 4, len(ids))
        for name, clusters in (("job", [prompt.cluster for prompt in calibration]), ("alone", None)):
            found = certify({"a": {"harm": Costs(ids, values, clusters)}}, terms)
            wrong[name] += found.verdict == "CERTIFIED"
    assert wrong["job"] / 150 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150)
    assert wrong["alone"] / 150 > 0.15


def test_a_policy_is_measured_as_it_is_certified_each_unit_once(tmp_path: Path) -> None:
    means = np.array([1.0, 3.0, 8.0])
    assert unit_means(means, np.array(["a", "a", "b"])).tolist() == [2.0, 8.0]
    assert unit_means(means, np.array(["c", "b", "a"])).tolist() == means.tolist()
    job = gibbs_job(tmp_path / "run", gibbs_config([{"name": "harm", "limit": 0.45, "cap": 1.0}]))
    tune = [replace(prompt, cluster="one" if k < 100 else "") for k, prompt in enumerate(prompts("tune", 200))]
    tune = [replace(prompt, cluster=prompt.cluster or prompt.id) for prompt in tune]
    search = prepare(with_splits(job, tune=tune))
    made, found = search.samples(job.reference), search.measure(job.reference)
    costs = made.costs[:, :, 0].mean(axis=1)
    assert found.costs[0] == pytest.approx(np.r_[costs[:100].mean(), costs[100:]].mean())
    # 101 units, not 200: the margin is wider by about the square root of the ratio
    wide = search.margin(found)[0]
    narrow = replace(search, job=with_splits(job, tune=prompts("tune", 200))).margin(found)[0]
    assert wide > narrow
