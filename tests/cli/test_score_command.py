"""``dualign score``: columns, files, exit codes."""

import json

import pyarrow.parquet
import pytest
import typer
from typer.testing import CliRunner

from dualign.cli.sample import score
from dualign.data.prompts import read_responses
from dualign.data.score_file import read_costs
from dualign.errors import DataError, MissingError, ScorerError, UsageError

APP = typer.Typer()
APP.command()(score)
ROWS = [
    {"prompt": "a", "response": "I can\u2019t help with that.", "label": "unsafe", "n": 1},
    {"prompt": "b", "response": "Sure, two words more", "label": "unsafe", "n": 2},
    {"prompt": "c", "response": "", "label": "safe", "n": 3},
]


@pytest.fixture
def answers(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def run(*arguments):
    return CliRunner().invoke(APP, [str(argument) for argument in arguments], catch_exceptions=True)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_keep_their_columns_and_gain_a_score(answers, tmp_path):
    result = run(answers, "--scorer", "length", "--set", "unit=characters", "--out", tmp_path / "o.jsonl", "--json")
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    rows = read(tmp_path / "o.jsonl")
    assert [row["reward"] for row in rows] == [len(row["response"]) for row in ROWS]
    assert [row["n"] for row in rows] == [1, 2, 3] and rows[0]["response"] == ROWS[0]["response"]
    assert rows[0]["scorer"] == "reward=length(characters)"
    assert rows[0]["revision"] == f"reward={figures['revision']}"
    assert figures["rows"] == 3 and figures["mean"] == pytest.approx(sum(row["reward"] for row in rows) / 3)


def test_second_score_stands_beside_the_first(answers, tmp_path):
    (tmp_path / "harm.yaml").write_text("kind: compliance-harm\nwhere: {label: unsafe}\n")
    run(answers, "--scorer", "helpfulness", "--out", tmp_path / "1.jsonl")
    result = run(tmp_path / "1.jsonl", "--scorer", tmp_path / "harm.yaml", "--out", tmp_path / "2.parquet")
    assert result.exit_code == 0
    rows = pyarrow.parquet.read_table(tmp_path / "2.parquet").to_pylist()
    assert [row["cost"] for row in rows] == pytest.approx([0.05, 1.0, 0.0])
    assert [row["reward"] for row in rows] == pytest.approx([0.55, 1.5, 0.0])
    assert rows[0]["scorer"] == "reward=helpfulness; cost=compliance-harm"


@pytest.mark.parametrize(
    ("scorer", "more", "error", "says"),
    [
        ("lenght", [], UsageError, "did you mean 'length'"),
        ("length", ["--set", "units=words"], UsageError, "did you mean 'unit'"),
        ("length", ["--set", "unit"], UsageError, "key=value"),
        ("compliance-harm", ["--direction", "reward"], UsageError, "is a cost"),
        ("length", ["--column", "n"], UsageError, "such a column"),
        ("length", ["--column", "scorer"], UsageError, "--column scorer: is where"),
        ("length", ["--column", "revision"], UsageError, "--column revision: is where"),
        ("length", ["--set", "unit=["], UsageError, "--set 'unit=['"),
        ("kind=regex,pattern=[", [], UsageError, "pattern of the scorer"),
        ("kind=regex,patern=a", [], UsageError, "unknown key 'patern'; did you mean 'pattern'?"),
        ("kind=[1]", [], UsageError, "kind is [1]; a text is needed"),
        ("scorers..of:me", [], UsageError, "no callable's name"),
        ("none.yaml", [], MissingError, "none.yaml"),
        ("no_such_module_here:f", [], MissingError, "no_such_module_here"),
        ("math:fsum", [], ScorerError, "raised TypeError"),
        ("compliance-harm", ["--set", "where={lable: unsafe}"], ScorerError, "did you mean 'label'"),
    ],
)
def test_mistakes_leave_no_file(answers, tmp_path, scorer, more, error, says):
    result = run(answers, "--scorer", scorer, "--out", tmp_path / "o.jsonl", *more)
    assert isinstance(result.exception, error), result.output
    assert says in str(result.exception) and result.stdout == ""
    assert not (tmp_path / "o.jsonl").exists()


def test_out_must_be_another_file_of_a_known_kind(answers, tmp_path):
    for out in (answers, tmp_path / "o.xlsx"):
        assert isinstance(run(answers, "--scorer", "length", "--out", out).exception, UsageError)
    assert read(answers) == ROWS


def test_broken_rows_name_their_line(answers, tmp_path):
    answers.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a", "reponse": "b"}\n')
    result = run(answers, "--scorer", "length", "--out", tmp_path / "o.jsonl")
    assert isinstance(result.exception, DataError)
    assert "line 2" in str(result.exception) and "did you mean 'reponse'" in str(result.exception)


def test_scorer_file_with_a_mistake_is_a_mistake_in_a_file(answers, tmp_path):
    (tmp_path / "s.yaml").write_text("kind: length\nunit: pages\n")
    result = run(answers, "--scorer", tmp_path / "s.yaml", "--out", tmp_path / "o.jsonl")
    assert result.exception.exit_code == 65 and "'words', 'characters' or 'tokens'" in str(result.exception)


RAISES = "math:fsum"
"""A scorer that raises once it is asked."""
HALF = "half of a character"
LONG_NUMBER = 123456789012345678901234567890


@pytest.mark.parametrize(
    ("out", "row", "says"),
    [
        ("o.jsonl", {"meta": {"x": "\ud800"}}, f"line 2: meta holds {HALF}"),
        ("o.csv", {"meta": [["a", {"\udfff": 1}]]}, f"line 2: meta holds {HALF}"),
        ("o.jsonl", {"x\ud800": 1}, f"line 2: the name 'x\\ud800' of a column holds {HALF}"),
        ("o.jsonl", {"x": float("inf")}, "no JSON form"),
        ("o.parquet", {"x": "a text"}, "column 'x' has no Parquet form"),
        ("o.parquet", {"x": LONG_NUMBER}, "column 'x' has no Parquet form"),
        ("o.parquet", {"y": {}}, "no Parquet form (Cannot write struct type 'y'"),
    ],
)
def test_rows_that_cannot_be_written_are_refused_before_they_are_scored(tmp_path, out, row, says):
    rows = [{"prompt": "a", "response": "b", "x": 1}, {"prompt": "a", "response": "b", **row}]
    text = "".join(json.dumps(row) + "\n" for row in rows).replace("Infinity", "1e999")
    (tmp_path / "rows.jsonl").write_text(text)
    result = run(tmp_path / "rows.jsonl", "--scorer", RAISES, "--out", tmp_path / out)
    assert isinstance(result.exception, DataError), result.exception
    assert says in str(result.exception) and "\n" not in str(result.exception)
    assert not (tmp_path / out).exists()


def test_the_same_rows_are_written_where_the_format_has_room_for_them(tmp_path):
    rows = [{"prompt": "a", "response": "b", "x": x} for x in (1, "text", LONG_NUMBER, {}, [])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(tmp_path / "rows.jsonl", "--scorer", "length", "--out", tmp_path / "o.jsonl").exit_code == 0
    assert [row["x"] for row in read(tmp_path / "o.jsonl")] == [row["x"] for row in rows]


def test_a_csv_is_read_back_with_every_end_of_line(tmp_path):
    texts = ["a\rb", "\r", "a\r\nb\n", 'say "a", b', "", "a\u2028b", " ", "1.5"]
    rows = [{"prompt": "p", "response": text, "n": 1} for text in texts]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(tmp_path / "rows.jsonl", "--scorer", "length", "--set", "unit=characters", "--out", tmp_path / "o.csv")
    assert result.exit_code == 0
    back = read_responses(tmp_path / "o.csv")
    assert back.responses == texts
    assert [float(row["reward"]) for row in back.rows] == [len(text) for text in texts]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_conversations_are_scored_and_read_back_as_the_same_prompts(tmp_path, ending):
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "go on"},
    ]
    rows = [{"question": talk, "predict": "one two"}, {"question": talk[:1], "predict": "one"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / f"o.{ending}"
    mapped = ("--columns", "prompt=question,response=predict", "--direction", "cost")
    assert run(tmp_path / "rows.jsonl", "--scorer", "length", "--out", out, *mapped).exit_code == 0
    back, first = (
        read_responses(out),
        read_responses(tmp_path / "rows.jsonl", rename={"prompt": "question", "response": "predict"}),
    )
    assert [(prompt.id, prompt.history) for prompt in back.prompts] == [(p.id, p.history) for p in first.prompts]
    costs = read_costs(out).costs["policy"]["cost"]
    assert (costs.prompts, costs.costs.tolist()) == ([prompt.id for prompt in first.prompts], [2.0, 1.0])
    assert len(first.prompts[0].history) == 2 and first.prompts[1].history == ()
