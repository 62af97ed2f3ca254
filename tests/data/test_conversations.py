"""Prompts and answers as messages, in every table that is read: one conversation, many spellings, one prompt."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualign.data.prompts import read_demonstrations, read_prompts, read_responses
from dualign.data.score_file import read_costs, read_scores
from dualign.data.turns import as_prompt, written
from dualign.errors import DataError, UsageError
from dualign.records import Prompt, Turn

PLAIN = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Tell a story"},
    {"role": "assistant", "content": "Once."},
    {"role": "user", "content": "Go on"},
]
TALK = Prompt("Go on", history=(Turn("system", "Be kind."), Turn("user", "Tell a story"), Turn("assistant", "Once.")))
NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
SHAREGPT = [{"from": NAMES[turn["role"]], "value": turn["content"]} for turn in PLAIN]
PARTS = [{"role": t["role"].title(), "content": [{"type": "text", "text": t["content"]}]} for t in PLAIN]
ANSWER = {"role": "assistant", "content": "And then"}


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SPELLINGS = {
    "messages": PLAIN,
    "from and value": SHAREGPT,
    "parts of text": PARTS,
    "JSON text": json.dumps(PLAIN),
    "JSON text of from and value": json.dumps(SHAREGPT),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_table_reads_one_conversation_in_every_spelling(tmp_path: Path, name: str) -> None:
    said = SPELLINGS[name]
    prompts = read_prompts(jsonl(tmp_path / "p.jsonl", {"prompt": said, "label": "x"})).prompts
    assert prompts == [Prompt(TALK.text, {"label": "x"}, history=TALK.history)]
    answers = read_responses(jsonl(tmp_path / "r.jsonl", {"prompt": said, "response": "And then"}))
    assert (answers.prompts, answers.responses) == ([TALK], ["And then"])
    costs = read_costs(jsonl(tmp_path / "c.jsonl", {"prompt": said, "cost": 1}))
    assert costs.costs["policy"]["cost"].prompts == [TALK.id]
    rows = [{"prompt": said, "reward": 1, "cost": 2}, {"prompt": PLAIN, "reward": 3, "cost": 4}]
    assert read_scores(jsonl(tmp_path / "s.jsonl", *rows)).reward.tolist() == [[1.0, 3.0]]


@pytest.mark.parametrize("ending", ["csv", "tsv.gz", "parquet", "json"])
def test_messages_in_other_containers(tmp_path: Path, ending: str) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / f"p.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"prompt": PLAIN}]), path)
    elif ending == "json":
        path.write_text(json.dumps([{"prompt": PLAIN}]))
    else:
        opened: Callable[..., Any] = gzip.open if ending.endswith("gz") else open
        with opened(path, "wt", newline="") as file:
            table = csv.writer(file, delimiter="," if ending == "csv" else "\t")
            table.writerows([["prompt", "label"], [json.dumps(PLAIN), "x"]])
    (prompt,) = read_prompts(path).prompts
    assert (prompt.id, prompt.history) == (TALK.id, TALK.history)


@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_a_transcript_is_asked_without_its_last_answer_and_scored_with_it(tmp_path: Path, name: str) -> None:
    path = jsonl(tmp_path / "t.jsonl", {name: [*PLAIN, ANSWER], "cost": 1})
    assert [(p.id, p.history) for p in read_prompts(path).prompts] == [(TALK.id, TALK.history)]
    assert read_costs(path).costs["policy"]["cost"].prompts == [TALK.id]
    answers = read_responses(path)
    assert (answers.prompts[0].id, answers.responses) == (TALK.id, ["And then"])
    ((prompt, response),) = read_demonstrations(path).demonstrations
    assert (prompt.id, response) == (TALK.id, "And then")
    with pytest.raises(DataError, match="line 1: the response is missing"):
        read_responses(jsonl(tmp_path / "u.jsonl", {name: PLAIN}))


def test_answers_as_messages_and_a_column_of_system_turns(tmp_path: Path) -> None:
    rows = [
        {"prompt": PLAIN, "completion": [ANSWER]},
        {"prompt": PLAIN[1:], "completion": ANSWER, "system": "Be kind."},
        {"prompt": json.dumps(PLAIN), "completion": json.dumps([ANSWER]), "system": " "},
    ]
    answers = read_responses(jsonl(tmp_path / "r.jsonl", *rows))
    assert [prompt.history for prompt in answers.prompts] == [TALK.history] * 3
    assert answers.responses == ["And then"] * 3
    alpaca = {"instruction": "Go on", "input": "", "output": "x", "system": "Be kind."}
    path = jsonl(tmp_path / "a.jsonl", alpaca | {"history": [["Tell a story", "Once."]]})
    assert read_prompts(path).prompts == [TALK]


def test_prompts_of_a_preference_file_without_a_column_of_prompts(tmp_path: Path) -> None:
    row = {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}
    assert [prompt.text for prompt in read_prompts(jsonl(tmp_path / "p.jsonl", row)).prompts] == ["Hi"]


FAULTS = {
    "ends with the assistant": ([*PLAIN, ANSWER], "does not end with a turn of role 'user'"),
    "two of one speaker": ([PLAIN[1], PLAIN[1]], "turn 2 is of role 'user'"),
    "a tool": ([PLAIN[1], {"role": "tool", "content": "x"}, PLAIN[1]], "tool turns are not read"),
    "an image": ([{"role": "user", "content": [{"type": "image_url"}]}], "texts alone are read"),
    "a role of nobody": ([{"role": "narrator", "content": "x"}], "the role 'narrator'"),
    "as Python prints it": (repr(PLAIN), "as Python prints them"),
    "half of a character": ([{"role": "user", "content": "\ud800"}], "half of a character"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_no_prompt_is_one_line_in_every_table(tmp_path: Path, name: str) -> None:
    said, says = FAULTS[name]
    row = {"prompt": said, "response": "x", "reward": 0, "cost": 1}
    path = jsonl(tmp_path / "x.jsonl", {"prompt": "p", "response": "x", "reward": 0, "cost": 1}, row)
    for read in (read_prompts, read_responses, read_costs, read_scores):
        with pytest.raises(DataError) as caught:
            read(path)
        assert says in str(caught.value) and "line 2" in str(caught.value) and "\n" not in str(caught.value)


def test_a_prompt_is_told_by_all_of_its_turns_and_a_single_turn_by_its_text(tmp_path: Path) -> None:
    # The id of old runs: SHA-256 of the normalised text.
    assert Prompt("  Hello\tWORLD ").id == as_prompt([{"role": "user", "content": "hello world"}]).id
    assert Prompt("hello world").id == "b94d27b9934d3e08"
    rows = [
        {"prompt": PLAIN},
        {"prompt": [{"role": "system", "content": "be  KIND."}, *PLAIN[1:]]},
        {"prompt": PLAIN[1:]},
        {"prompt": [*PLAIN[:2], {"role": "assistant", "content": "Twice."}, PLAIN[3]]},
        {"prompt": "Go on"},
        {"prompt": "go on"},
        {"prompt": "Go on"},
    ]
    read = read_prompts(jsonl(tmp_path / "p.jsonl", *rows))
    assert (len(read.prompts), read.duplicates, read.alike, len(read.every)) == (4, 3, 2, 7)
    costs = read_costs(jsonl(tmp_path / "c.jsonl", *({**row, "cost": 1} for row in rows)))
    assert len(set(costs.costs["policy"]["cost"].prompts)) == 4
    assert costs.notes == (
        "2 prompts differ from others in letter case, white space or Unicode form alone: they count as the same, "
        "and 4 are told apart",
    )


def test_a_prompt_is_written_as_it_is_read() -> None:
    assert written(Prompt("a")) == "a"
    assert written(TALK) == PLAIN
    assert as_prompt(written(TALK)) == TALK


def test_columns_are_renamed_and_paths_reach_into_objects(tmp_path: Path) -> None:
    row = {"doc": {"q": "Why?"}, "resps": [["So."]], "harm": 0.5, "prompt": "not this", "label": "x"}
    path = jsonl(tmp_path / "h.jsonl", row, row)
    answers = read_responses(path, rename={"prompt": "doc.q", "response": "resps.0.0"})
    assert (answers.prompts[0].text, answers.responses[0]) == ("Why?", "So.")
    assert answers.rows[0]["label"] == "x" and answers.rows[0]["prompt"] == "Why?"
    costs = read_costs(path, columns={"prompt": "doc.q", "cost_harm": "harm"})
    assert costs.names == ("harm",) and set(costs.costs["policy"]["harm"].prompts) == {Prompt("Why?").id}
    (prompt,) = read_prompts(path, rename={"prompt": "doc.q"}).prompts
    assert (prompt.text, dict(prompt.columns)) == ("Why?", {"harm": "0.5", "label": "x"})


@pytest.mark.parametrize(
    ("columns", "error", "says"),
    [
        ({"promt": "q"}, UsageError, "nothing is read as 'promt'; did you mean 'prompt'?"),
        ({"prompt": "quetion"}, DataError, "no column 'quetion' to read as 'prompt'; did you mean 'question'?"),
        ({"prompt": "question.0"}, DataError, "no column 'question.0'"),
        ({"prompt": "question", "cost": "question"}, UsageError, "is to be read as two"),
    ],
)
def test_mistakes_in_renaming(tmp_path: Path, columns: dict[str, str], error: type[Exception], says: str) -> None:
    path = jsonl(tmp_path / "c.jsonl", {"question": "a", "cost": 1})
    with pytest.raises(error, match="columns|no column") as caught:
        read_costs(path, columns=columns)
    assert says in str(caught.value)
    if "cost" not in columns:
        with pytest.raises(error):
            read_prompts(path, rename=columns)


LM_EVAL = {
    "doc_id": 0,
    "arguments": {"gen_args_0": {"arg_0": "Why?", "arg_1": {}}},
    "resps": [["So."]],
    "filtered_resps": ["So."],
    "harm": 0.0,
}
INSPECT = {"version": 2, "samples": [{"id": 1, "input": "Why?", "output": {"completion": "So."}, "scores": {"j": {}}}]}


def test_files_of_harnesses_are_told_the_mapping_that_would_do(tmp_path: Path) -> None:
    told = {}
    for name, content in (
        ("samples.jsonl", LM_EVAL),
        ("log.json", INSPECT),
        ("predictions.jsonl", {"prompt": "Why?", "predict": "So.", "label": "x"}),
    ):
        path = tmp_path / name
        path.write_text(json.dumps(content))
        for read in (read_responses, read_costs):
            with pytest.raises(DataError) as caught:
                read(path)
            told[name, read] = str(caught.value).partition("--columns ")[2].split()[0]
    assert told["samples.jsonl", read_responses] == "prompt=arguments.gen_args_0.arg_0,response=filtered_resps.0"
    assert told["samples.jsonl", read_costs] == "prompt=arguments.gen_args_0.arg_0,cost=harm"
    assert told["log.json", read_responses] == "prompt=input,response=output.completion"
    assert told["log.json", read_costs] == "prompt=input,cost=scores.j.value"
    assert told["predictions.jsonl", read_responses] == "response=predict"
    mapping = dict(pair.split("=") for pair in told["log.json", read_responses].split(","))
    assert read_responses(tmp_path / "log.json", rename=mapping).responses == ["So."]


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ([ANSWER, ANSWER], "the response holds turns of assistant, assistant; one turn of the assistant is needed"),
        (PLAIN[1:2], "the response holds turns of user; one turn"),
        (json.dumps([*PLAIN[1:], ANSWER]), "the response holds turns of user, assistant, user, assistant"),
        (5, "the response is int '5'; a text is needed"),
        (None, "the response is missing"),
        ([], "the response is list '[]'"),
    ],
)
def test_an_answer_is_one_turn(tmp_path: Path, said: object, says: str) -> None:
    rows = [{"prompt": "p", "response": "x"}, {"prompt": "p", "response": said}]
    with pytest.raises(DataError, match="line 2: ") as caught:
        read_responses(jsonl(tmp_path / "r.jsonl", *rows))
    assert says in str(caught.value)


def test_costs_and_scores_tell_prompts_apart_as_scored_answers_do(tmp_path: Path) -> None:
    scored = {"reward": 1.0, "cost": 2.0}
    asked: list[dict[str, Any]] = [
        {"prompt": "Go on", "system": "Be kind."},
        {"prompt": "Go on", "system": "Be rude."},
        {"prompt": "Go on", "system": None},
        {"instruction": "Add these.", "input": "1 and 2"},
        {"instruction": "Add these.", "input": "3 and 4"},
        {"prompt": None, "messages": PLAIN},
    ]
    path = tmp_path / "scored.jsonl"
    path.write_text("".join(json.dumps({**row, **scored}) + "\n" for row in asked for _ in range(2)))
    costs, scores = read_costs(path), read_scores(path)
    assert {prompt.id: prompt for prompt in scores.asked} == costs.asked
    assert list(scores.asked) == [
        Prompt("Go on", history=(Turn("system", "Be kind."),)),
        Prompt("Go on", history=(Turn("system", "Be rude."),)),
        Prompt("Go on"),
        Prompt("Add these.\n\n1 and 2"),
        Prompt("Add these.\n\n3 and 4"),
        TALK,
    ]
    for row in asked[:5]:
        answer = {"output" if "instruction" in row else "response": "Well."}
        path.write_text(json.dumps({**row, **answer}) + "\n")
        assert read_responses(path).prompts[0].id in costs.asked


@pytest.mark.parametrize("attached", [{"images": ["a.png"]}, {"image": "a.png"}, {"tools": '[{"name": "add"}]'}])
def test_a_prompt_that_goes_with_a_tool_or_an_image_is_refused(tmp_path: Path, attached: dict[str, Any]) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "What is this?", **attached}))
    with pytest.raises(DataError, match=f"line 1: {next(iter(attached))} holds .*, which goes with the prompt"):
        read_prompts(path)
    path.write_text(json.dumps({"prompt": "What is this?", **dict.fromkeys(attached), "images": [], "tools": "[]"}))
    assert [prompt.text for prompt in read_prompts(path).prompts] == ["What is this?"]
