"""Data in memory: lists, data sets and frames are read as files of the same rows are, and rows are named by number."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dualign.data.checks.check import check_readings
from dualign.data.checks.reading import Limits, read
from dualign.data.formats.table import read_preferences
from dualign.data.prompts import read_demonstrations, read_prompts, read_responses
from dualign.data.score_file import read_costs, read_scores
from dualign.data.tables import in_memory
from dualign.errors import DataError
from dualign.records import Prompt
from preference_files import ASK, EXAMPLES, KIND, RUDE, TALK, message

TALKS = [{"prompt": "Hello", "topic": "a"}, {"prompt": TALK, "topic": "b"}]


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_format_is_read_as_from_its_file(tmp_path: Path, name: str) -> None:
    rows = [EXAMPLES[name][0], EXAMPLES[name][0]]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    there, here = read_preferences(tmp_path / "f.jsonl"), read_preferences(iter(rows))
    assert (here.format, here.rows, here.columns) == (there.format, there.rows, there.columns)


def test_prompts_are_texts_messages_or_rows() -> None:
    assert read_prompts(["Hello", "Bye"]).prompts == [Prompt("Hello"), Prompt("Bye")]
    assert (
        read_prompts([TALK]).prompts[0]
        == read_prompts([{"prompt": TALK}]).prompts[0]
        == EXAMPLES["trl-chat-explicit"][1].prompt
    )
    found = read_prompts(TALKS, where={"topic": "b"})
    assert (found.rows, found.filtered, found.prompts[0].columns) == (2, 1, {"topic": "b"})
    assert read_prompts(({"question": "Hello"} for _ in range(2)), rename={"prompt": "question"}).duplicates == 1
    assert [prompt.place for prompt in read_prompts(in_memory(TALKS, "prompts")).prompts] == [
        "prompts: row 1",
        "prompts: row 2",
    ]


def test_a_pandas_frame_is_its_rows_and_a_gap_is_nothing() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({
        "prompt": [ASK, ASK], "chosen": [KIND, KIND], "rejected": [RUDE, None], "label": [1, np.nan]
    })  # fmt: skip
    found = read_preferences(frame)
    assert found.rows[0].answers[0].text == KIND
    assert [(fault.rule, fault.line, fault.what) for fault in found.faults] == [
        ("not a text", 2, "rejected is null; a text is needed")
    ]
    assert read_prompts(frame[["prompt", "label"]]).every[1].columns == {}
    flags = pandas.DataFrame({**{name: [value] for name, value in EXAMPLES["pku-saferlhf-v0"][0].items()}})
    assert read_preferences(flags).rows == (EXAMPLES["pku-saferlhf-v0"][1],)
    with pytest.raises(DataError, match="data: column 'prompt' occurs twice"):
        read_prompts(pandas.concat([frame, frame], axis=1))
    assert read_prompts(frame["prompt"]).prompts == [Prompt(ASK)]


def test_a_data_set_of_the_hub_is_its_rows() -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": TALK, "chosen": [message("assistant", KIND)], "rejected": [message("assistant", RUDE)]}]
    data = datasets.Dataset.from_list(rows)
    assert read_preferences(data).rows == (EXAMPLES["trl-chat-explicit"][1],)
    assert read_prompts(data).prompts == [EXAMPLES["trl-chat-explicit"][1].prompt]
    with pytest.raises(DataError, match="is an object of columns; rows are needed"):
        read_prompts(datasets.DatasetDict({"train": data}))


def test_arrays_and_scalars_of_numpy_are_lists_and_numbers() -> None:
    rows = [{"prompt": np.array(TALK, dtype=object), "cost": np.float32(0.5)}, {"prompt": "b", "cost": np.int64(2)}]
    costs = read_costs(rows)
    (found,) = costs.costs["policy"].values()
    assert found.costs.tolist() == [0.5, 2.0]
    assert sorted(len(prompt.history) for prompt in costs.asked.values()) == [0, 3]
    scores = [{"prompt": "a", "reward": value, "cost": -value} for value in np.array([1.0, 3.0])]
    assert read_scores(scores).reward.tolist() == [[1.0, 3.0]]


def test_rows_in_memory_are_checked_as_files_are() -> None:
    pairs = [{"prompt": f"{ASK} {k}", "chosen": KIND, "rejected": RUDE} for k in range(20)]
    report = check_readings([read(in_memory([*pairs, pairs[3] | {"chosen": ""}], "pairs"))], limits=Limits())
    assert (report.paths, report.kept, report.accepted) == (["pairs"], 20, True)
    assert [(rule.rule, rule.rows) for rule in report.rules] == [("empty response", [21])]
    assert [(fault.rule, fault.line) for fault in read([]).faults] == [("empty data set", 0)]


@pytest.mark.parametrize(
    ("reader", "rows", "says"),
    [
        (read_prompts, ["Hello", 3], "data: row 2: is a number; an object like"),
        (read_prompts, [{"prompt": "a"}, {"prompt": 3}], "data: row 2: the prompt is int '3'; a text is needed"),
        (read_prompts, {"prompt": ["a"]}, "data: is an object of columns; rows are needed"),
        (read_prompts, [], "data: has no rows"),
        (read_prompts, [Prompt("a")], "data: row 1: is of type Prompt; an object like"),
        (read_demonstrations, [{"prompt": "a", "response": "b"}, {"prompt": "a"}], "data: row 2: the response is miss"),
        (read_responses, [{"prompt": "a", "response": "\ud800"}], "data: row 1: response holds half of a character"),
        (read_costs, [{"prompt": "a", "cost": None}], "data: row 1: column 'cost' holds nothing; expected a finite"),
        (read_preferences, [{"prompt": "a", "better": "b"}], "data: row 1: columns 'prompt', 'better' are no known"),
        (read_preferences, [EXAMPLES["beavertails"][0] | {"is_safe": 1}], "data: row 1: is_safe is 1; true or false"),
    ],
)
def test_faults_name_the_row(reader: Any, rows: Any, says: str) -> None:
    with pytest.raises(DataError) as caught:
        reader(rows)
    assert str(caught.value).startswith(says)
