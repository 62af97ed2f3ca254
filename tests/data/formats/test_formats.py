"""Every format is recognised by its columns alone, in every kind of file, and read into the same records."""

import csv
import gzip
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from dualign.data.formats.chat_forms import shared_words
from dualign.data.formats.table import FORMATS, describe, read_preferences
from dualign.data.preferences import Answer, PreferenceError, PreferenceRow, grouped
from dualign.errors import DataError, UsageError
from dualign.records import Turn
from preference_files import ASK, EXAMPLES, KIND, PLAIN, RUDE, SCRIPT, TALK, message, write_rows

SHARED = Path(os.environ.get("DUALIGN_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))


def test_every_format_of_the_table_has_an_example_or_a_refusal() -> None:
    refused = {name for name, known in FORMATS.items() if known.refusal}
    assert set(EXAMPLES) | refused | {"dualign"} == set(FORMATS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_format_is_recognised_without_a_flag(tmp_path: Path, name: str) -> None:
    values, row = EXAMPLES[name]
    file = read_preferences(write_rows(tmp_path / "f.jsonl", [values, values]))
    assert (file.format, file.total, file.faults) == (name, 2, ())
    assert file.rows == (row, replace(row, line=2))
    assert f": {name} (" in describe(file) and describe(file).endswith("2 of 2 rows read")


@pytest.mark.parametrize("name", EXAMPLES)
def test_json_gzip_and_parquet_are_read_alike(tmp_path: Path, name: str) -> None:
    import pyarrow
    import pyarrow.parquet

    values, row = EXAMPLES[name]
    (tmp_path / "f.json").write_text(json.dumps([values]))
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress(json.dumps(values).encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([values]), tmp_path / "f.parquet")
    for path in sorted(tmp_path.iterdir()):
        file = read_preferences(path)
        assert (file.format, file.rows, file.faults) == (name, (row,), ()), path.name


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_labels_of_a_file_of_texts_are_flags_and_numbers(tmp_path: Path, name: str, delimiter: str) -> None:
    values, row = EXAMPLES[name]
    path = tmp_path / ("f.csv" if delimiter == "," else "f.tsv")
    cells = {key: json.dumps(value) if isinstance(value, dict | list) else value for key, value in values.items()}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, cells, delimiter=delimiter)
        writer.writeheader()  # flags are written True and False
        writer.writerow(cells)
    read = read_preferences(path)
    assert (read.format, read.rows[0].answers) == (name, row.answers)
    assert (read.rows[0].better, read.rows[0].safer, read.rows[0].prompt) == (row.better, row.safer, row.prompt)


def test_answers_that_are_json_themselves_stay_texts_in_csv(tmp_path: Path) -> None:
    said = ["[1, 2]", '[{"name": "Ada"}]', "[]", "[{'role': 'x'}] is a list of Python", '{"role": "user"}', "true"]
    with (tmp_path / "f.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "chosen", "rejected"], *([ASK, text, RUDE] for text in said)])
    read = read_preferences(tmp_path / "f.csv")
    assert (read.format, read.faults) == ("trl-plain-explicit", ())
    assert [row.answers[0].text for row in read.rows] == said


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"prompt": ASK, "response": KIND, "severity_category": 0, "safety_category": []}, "PKU-SafeRLHF"),
        ({"prompt": ASK, "category": "tools", "category_id": 3}, "data.prompts"),
    ],
)
def test_files_without_pairs_are_refused_with_the_way_out(tmp_path: Path, values: dict, named: str) -> None:
    with pytest.raises(DataError, match=named):
        read_preferences(write_rows(tmp_path / "f.jsonl", [values]))


def test_columns_are_mapped_and_the_mapping_is_said_aloud(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "f.jsonl", [{"q": ASK, "a": KIND, "b": RUDE, "chosen": "c", "topic": "tools"}])
    file = read_preferences(path, columns={"prompt": "q", "chosen": "a", "rejected": "b"})
    assert file.format == "trl-plain-explicit"
    assert file.columns == {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert file.rows[0].prompt.columns == {"topic": "tools"}  # the column that was called chosen has given way
    assert [answer.text for answer in file.rows[0].answers] == [KIND, RUDE]
    assert "prompt from 'q'" in describe(file)


def test_mistakes_in_names_come_with_the_nearest_name(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "f.jsonl", [{"prompt": ASK, "chosen": KIND, "rejcted": RUDE}])
    with pytest.raises(DataError, match=r"no column 'rejected', did you mean 'rejcted'\?"):
        read_preferences(path)
    with pytest.raises(DataError, match=r"no column 'rejct'.*'rejcted'"):
        read_preferences(path, columns={"rejected": "rejct"})
    with pytest.raises(UsageError, match=r"no format reads 'chose'; did you mean 'chosen'\?"):
        read_preferences(path, columns={"chose": "rejcted"})
    with pytest.raises(UsageError, match="as two"):
        read_preferences(path, columns={"chosen": "prompt", "rejected": "prompt"})
    with pytest.raises(UsageError, match=r"unknown format 'hh-rlfh'; did you mean 'hh-rlhf'\?"):
        read_preferences(path, format="hh-rlfh")
    with pytest.raises(PreferenceError, match="read as pku-saferlhf-v0.*no column 'response_0'"):
        read_preferences(path, format="pku-saferlhf-v0")
    other = write_rows(tmp_path / "g.jsonl", [{"goal": "x", "target": "y"}])
    with pytest.raises(DataError, match="'goal', 'target' are no known format"):
        read_preferences(other)


def test_split_column_is_the_rows_split(tmp_path: Path) -> None:
    values = EXAMPLES["safety-pairs"][0] | {"split": "test", "rank": 3, "tags": ["x"], "bad": "\ud800"}
    (row,) = read_preferences(write_rows(tmp_path / "f.jsonl", [values])).rows
    assert (row.split, dict(row.prompt.columns)) == ("test", {"rank": "3"})
    assert row.prompt.id == PLAIN.id


def test_transcript_is_split_at_the_last_marker_and_speakers_alternate(tmp_path: Path) -> None:
    twice = "\n\nHuman: Hello\n\nHuman: Are you there?\n\nAssistant: Yes"
    rows = [
        {"chosen": f"{twice}. What is it?", "rejected": f"{twice}!"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: d"},
    ]
    first, second = read_preferences(write_rows(tmp_path / "f.jsonl", rows)).rows
    assert (first.prompt.text, first.prompt.history) == ("Hello\n\nAre you there?", ())
    assert [answer.text for answer in first.answers] == ["Yes. What is it?", "Yes!"]
    assert [answer.text for answer in second.answers] == ["b\nHuman: c", "d"]


def test_turns_that_chat_answers_share_belong_to_the_prompt(tmp_path: Path) -> None:
    more = [message("assistant", "Which knife?"), message("user", "The long one.")]
    values = {name: [*more, message("assistant", text)] for name, text in (("chosen", KIND), ("rejected", RUDE))}
    (row,) = read_preferences(write_rows(tmp_path / "f.jsonl", [values | {"prompt": TALK}])).rows
    assert row.prompt.text == "The long one."
    assert row.prompt.history[-2:] == (Turn("user", ASK), Turn("assistant", "Which knife?"))


def test_plain_prompt_beside_whole_conversations_is_not_read_twice(tmp_path: Path) -> None:
    values = EXAMPLES["trl-chat-implicit"][0] | {"prompt": ASK}
    file = read_preferences(write_rows(tmp_path / "f.jsonl", [values]))
    assert (file.format, file.rows) == ("trl-chat-implicit", (EXAMPLES["trl-chat-implicit"][1],))


@pytest.mark.parametrize(
    ("first", "second", "prompt"),
    [
        ("The sky is blue", "The sky is black", "The sky is"),
        ("Q: hi\nA: yes", "Q: hi\nA: no", "Q: hi\nA:"),
        ("Hello", "Help", ""),
        ("one two", "one two three", "one"),
        ("  x", "  y", ""),
        ("", "a", ""),
    ],
)
def test_implicit_prompt_ends_with_a_whole_word(first: str, second: str, prompt: str) -> None:
    length = shared_words(first, second)
    assert first[:length] == second[:length] == prompt
    assert not prompt or {first[length], second[length]} <= {" ", "\n"}


def test_several_costs_ask_which(tmp_path: Path) -> None:
    values = EXAMPLES["scored-pairs"][0] | {"cost_bias_0": 0.5, "cost_bias_1": 0.25}
    path = write_rows(tmp_path / "f.jsonl", [values])
    with pytest.raises(DataError, match="several costs.*cost_0=cost_bias_0,cost_1=cost_bias_1"):
        read_preferences(path)
    (row,) = read_preferences(path, columns={"cost_0": "cost_bias_0", "cost_1": "cost_bias_1"}).rows
    assert [answer.cost for answer in row.answers] == [0.5, 0.25]


def single(line: int, prompt: str, text: str, safe: bool | None, *categories: str) -> PreferenceRow:
    return PreferenceRow(
        line, replace(PLAIN, text=prompt, id=prompt), (Answer(text, safe, None, frozenset(categories)),)
    )


def test_single_answers_become_groups_by_prompt_with_the_flag_of_most() -> None:
    rows = [
        single(1, "p", "x", True), single(2, "q", "y", True), single(3, "p", "z", False, "a", "b"),
        single(4, "p", "x", True), single(5, "p", "x", False, "c"), single(6, "p", "z", True, "b"),
        replace(EXAMPLES["safety-pairs"][1], line=7),
    ]  # fmt: skip
    group, pair = grouped(rows)
    assert pair == rows[-1]
    assert [answer.text for answer in group.answers] == ["x", "z"]
    assert [answer.safe for answer in group.answers] == [True, False]  # 2 of 3; 1 of 2 is not most
    assert [sorted(answer.categories) for answer in group.answers] == [[], ["a", "b"]]  # 1 of 3 saw c, 1 of 2 a
    assert (group.line, group.safer, group.better) == (1, 0, None)
    both = grouped([single(1, "p", "x", True), single(2, "p", "y", True)])
    assert both[0].safer is None and grouped([]) == ()
    assert grouped(iter(rows)) == grouped(rows)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no folder of shared data")
@pytest.mark.parametrize(
    ("name", "format", "total", "single_turn"),
    [
        ("hh-rlhf-sample/harmless_base_test_300.jsonl", "hh-rlhf", 300, 102),
        ("pku-saferlhf-5k/pairs.jsonl", "safety-pairs", 3600, 3600),
    ],
)
def test_real_files_are_recognised(name: str, format: str, total: int, single_turn: int) -> None:
    file = read_preferences(SHARED / name)
    assert (file.format, file.total, len(file.rows) + len(file.faults)) == (format, total, total)
    assert sum(not row.prompt.history for row in file.rows) == single_turn
    assert not any("\n\nHuman:" in turn.text for row in file.rows for turn in row.prompt.history)


def test_synthetic_twin_of_the_transcripts(tmp_path: Path) -> None:
    alone = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go"}
    longer = {"chosen": SCRIPT + KIND, "rejected": SCRIPT + RUDE}
    file = read_preferences(write_rows(tmp_path / "f.jsonl", [alone, longer]))
    assert [len(row.prompt.history) for row in file.rows] == [0, 2]
