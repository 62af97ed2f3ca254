"""Reading of prompt and demonstration files: layouts, filters, counts, and one clear error a fault."""

import gzip
import json
import os
from pathlib import Path

import pytest

from dualign.data.prompts import read_demonstrations, read_prompts
from dualign.errors import DataError, MissingError
from dualign.records import prompt_id

SHARED = Path(os.environ.get("DUALIGN_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


LAYOUT_ROWS = {
    "xstest": (
        {"id": "1", "prompt": "p", "type": "t", "label": "safe"},
        "p",
        {"id": "1", "type": "t", "label": "safe"},
    ),
    "beavertails-evaluation": (
        {"prompt": "p", "category": "a,b", "category_id": 3},
        "p",
        {"category": "a,b", "category_id": "3"},
    ),
    "advbench": ({"goal": "p", "target": "Sure"}, "p", {}),
    "self-instruct": (
        {"instruction": "p", "instances": [{"input": "x", "output": "y"}], "is_classification": False},
        "p\n\nx",
        {"is_classification": "false"},
    ),
    "instructions": ({"instruction": "p", "output": "y", "input": ""}, "p", {}),
    "prompts": ({"prompt": "p", "weight": 2.5, "tags": ["a"], "none": None}, "p", {"weight": "2.5"}),
}


@pytest.mark.parametrize("name", LAYOUT_ROWS)
def test_layout_is_recognised_by_its_columns(tmp_path, name):
    row, text, columns = LAYOUT_ROWS[name]
    read = read_prompts(write(tmp_path / "f.jsonl", [row]), columns={"source": "s"})
    assert read.layout == name
    assert [(prompt.text, dict(prompt.columns)) for prompt in read.prompts] == [(text, {**columns, "source": "s"})]


def test_every_row_is_counted_once(tmp_path):
    rows = [
        {"prompt": text, "label": label}
        for text, label in [("One two", "a"), ("ONE  two", "a"), ("one two three", "a"), ("one", "b"), ("four", "a")]
    ]
    read = read_prompts(write(tmp_path / "f.jsonl", rows), where={"label": "a"}, max_words=2)
    assert [prompt.text for prompt in read.prompts] == ["One two", "four"]
    assert (read.rows, read.filtered, read.too_long, read.duplicates) == (5, 1, 1, 1)
    assert len(read.prompts) + read.filtered + read.too_long + read.duplicates == read.rows


def test_csv_tsv_parquet_text_json_and_gzip_read_alike(tmp_path):
    import pyarrow
    import pyarrow.parquet

    texts = ['say "hi", twice', "two\u2028lines", "naïve"]
    lines = "".join(json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.json").write_text(json.dumps([{"prompt": text} for text in texts]))
    (tmp_path / "a.txt").write_bytes("\r\n".join(texts).encode() + b"\n\n")
    (tmp_path / "a.csv").write_text('prompt\n"say ""hi"", twice"\n"two\u2028lines"\nnaïve\n', encoding="utf-8")
    (tmp_path / "a.tsv").write_text(
        'prompt\tx\n"say ""hi"", twice"\t1\ntwo\u2028lines\t2\nnaïve\t3\n', encoding="utf-8"
    )
    pyarrow.parquet.write_table(pyarrow.table({"prompt": texts}), tmp_path / "a.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert [prompt.text for prompt in read_prompts(path).prompts] == texts, path.name


def broken_gzip(path):
    path.write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 500)[:-9])


FAULTS = {
    "not JSON": ("f.jsonl", b'{"prompt": "a"}\n{"prompt": \n', DataError, "line 2"),
    "a list": ("f.jsonl", b'{"prompt": "a"}\n\n["b"]\n', DataError, "line 3"),
    "NaN": ("f.jsonl", b'{"prompt": "a"}\n{"prompt": NaN}\n', DataError, "line 2: the prompt is float"),
    "key twice": (
        "f.jsonl",
        b'{"prompt": "a"}\n{"prompt": "b", "prompt": "c"}\n',
        DataError,
        "line 2: not JSON ('prompt'",
    ),
    "huge number": ("f.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}\n", DataError, "line 1"),
    "deep": ("f.jsonl", b"[" * 200_000 + b"\n", DataError, "line 1"),
    "no text": ("f.jsonl", b'{"prompt": "a"}\n{"prompt": 3}\n', DataError, "line 2: the prompt is int"),
    "missing": ("f.jsonl", b'{"prompt": "a"}\n{"other": "b"}\n', DataError, "line 2: the prompt is missing"),
    "blank": ("f.jsonl", b'{"prompt": " "}\n', DataError, "line 1: the prompt is empty"),
    "surrogate": ("f.jsonl", b'{"prompt": "a \\ud800"}\n', DataError, "surrogate"),
    "UTF-16": ("f.jsonl", '{"prompt": "a"}\n'.encode("utf-16"), DataError, "UTF-16"),
    "Latin-1": ("f.jsonl", b'{"prompt": "a"}\n{"prompt": "\xe9"}\n', DataError, "line 2: byte 0xe9"),
    "empty": ("f.jsonl", b"", DataError, "empty"),
    "white": ("f.txt", b" \n\n", DataError, "empty"),
    "header alone": ("f.csv", b"prompt,label\n", DataError, "no rows"),
    "cells": ("f.csv", b"prompt,label\na,b\nc\n", DataError, "line 3: 1 cells"),
    "open quote": ("f.csv", b'prompt\n"a\n', DataError, "line"),
    "twice": ("f.csv", b"prompt,prompt\na,b\n", DataError, "twice"),
    "no Parquet": ("f.parquet", b"PAR1 nothing", DataError, "Parquet"),
    "empty Parquet": ("f.parquet", b"", DataError, "empty"),
    "ending": ("f.xlsx", b"a", DataError, "unknown ending"),
    "unknown layout": ("f.jsonl", b'{"question": "a"}\n', DataError, "no known layout"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_in_a_file_is_one_line_that_names_the_place(tmp_path, name):
    file, content, error, says = FAULTS[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(error) as caught:
        read_prompts(tmp_path / file)
    assert says in str(caught.value) and file in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 65


def test_truncated_gzip(tmp_path):
    broken_gzip(tmp_path / "f.jsonl.gz")
    with pytest.raises(DataError, match="cut short"):
        read_prompts(tmp_path / "f.jsonl.gz")


def test_missing_file_and_folder_exit_66(tmp_path):
    (tmp_path / "d.jsonl").mkdir()
    for name in ("none.jsonl", "d.jsonl"):
        with pytest.raises(MissingError) as caught:
            read_prompts(tmp_path / name)
        assert caught.value.exit_code == 66


def test_unknown_columns_get_the_nearest(tmp_path):
    path = write(tmp_path / "f.jsonl", [{"question": "a", "label": "x"}])
    assert read_prompts(path, rename={"prompt": "question"}).prompts[0].columns == {"label": "x"}
    with pytest.raises(DataError, match="did you mean 'question'"):
        read_prompts(path, rename={"prompt": "questoin"})
    with pytest.raises(DataError, match="did you mean 'label'"):
        read_prompts(path, rename={"prompt": "question"}, where={"lable": "x"})
    with pytest.raises(DataError, match="none of 1 rows"):
        read_prompts(path, rename={"prompt": "question"}, where={"label": "y"})


def test_demonstrations_drop_empty_and_equal_rows(tmp_path):
    rows = [
        {"prompt": "a", "response": "1"},
        {"prompt": "A", "response": "1"},
        {"prompt": "a", "response": "2"},
        {"prompt": "b", "response": " "},
    ]
    path = write(tmp_path / "f.jsonl", rows)
    read = read_demonstrations(path)
    assert [(prompt.text, response) for prompt, response in read.demonstrations] == [("a", "1"), ("a", "2")]
    assert (read.duplicates, read.empty) == (1, 1)


def test_an_attack_opening_is_no_demonstration_unless_named(tmp_path):
    path = write(tmp_path / "f.jsonl", [{"goal": "g", "target": "Sure"}])
    with pytest.raises(DataError, match="no response"):
        read_demonstrations(path)
    assert read_demonstrations(path, response_column="target").demonstrations[0][1] == "Sure"


@pytest.mark.skipif(not SHARED.is_dir(), reason="no folder of shared data")
def test_real_files():
    beaver = read_prompts(SHARED / "beavertails-evaluation/prompts.jsonl", columns={"label": "unsafe"})
    safe = read_prompts(SHARED / "xstest-prompts/prompts.jsonl", where={"label": "safe"}).prompts
    tuned = read_demonstrations(SHARED / "safety-tuned-llamas/safety_only_data_Instructions.jsonl")
    assert (len(beaver.prompts), beaver.duplicates, len(safe)) == (700, 0, 250)
    assert (len(tuned.demonstrations), tuned.layout) == (2483, "instructions")
    assert beaver.prompts[0].id == prompt_id(beaver.prompts[0].text)
