"""Each thing that can be wrong in a preference file: what is refused, what is left out, and what is said."""

import csv
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dualign.data.formats.table import read_preferences
from dualign.data.preferences import READING_RULES, PreferenceError
from dualign.errors import DataError, MissingError
from preference_files import ASK, EXAMPLES, KIND, RUDE, SCRIPT, TALK, message, write_rows

LOST = object()  # the column is not there
LONE = "half \ud800"
BROKEN: list[tuple[str, str, dict[str, Any], str]] = [
    ("pku-saferlhf-v0", "mixed label types", {"is_response_0_safe": "False"}, "'False'; true or false is needed"),
    ("pku-saferlhf-v0", "mixed label types", {"is_response_1_safe": 1}, "is 1; true or false"),
    ("pku-saferlhf-v0", "mixed label types", {"better_response_id": True}, "a whole number from 0 to 1"),
    ("pku-saferlhf-v0", "mixed label types", {"better_response_id": None}, "better_response_id is null"),
    ("pku-saferlhf-v0", "id out of range", {"safer_response_id": 2}, "safer_response_id is 2; a whole number from 0"),
    ("pku-saferlhf-v0", "id out of range", {"better_response_id": -1}, "better_response_id is -1"),
    ("pku-saferlhf", "mixed label types", {"response_0_severity_level": "2"}, "a level of harm"),
    ("pku-saferlhf", "mixed label types", {"response_0_harm_category": {"Violence": "yes"}}, "by category"),
    ("saferlhf-v", "id out of range", {"safer_response_id": 0}, "is 0; a whole number from 1 to 2"),
    ("beavertails", "mixed label types", {"is_safe": "no"}, "is_safe is 'no'"),
    ("scored-pairs", "score not a number", {"reward_0": "1.5"}, "'1.5'; one finite number"),
    ("scored-pairs", "score not a number", {"reward_0": 10**400}, "one finite number"),
    ("scored-pairs", "score not a number", {"cost_harm_1": None}, "cost_harm_1 is null"),
    ("scored-pairs", "score not a number", {"cost_harm_1": [1.0, 2.0]}, "a list of 2; one finite number"),
    ("scored-pairs", "score not a number", {"cost_harm_1": [1.0, 2.0]}, "give each its columns, cost_NAME_0"),
    ("scored-pairs", "score not a number", {"cost_harm_0": float("nan")}, "cost_harm_0 is nan; one finite number"),
    ("scored-pairs", "score not a number", {"reward_1": float("-inf")}, "reward_1 is -inf; one finite number"),
    ("scored-pairs", "missing column", {"reward_1": LOST}, "reward_1 is missing"),
    ("kto", "mixed label types", {"label": 1}, "label is 1; true or false is needed"),
    ("kto", "mixed label types", {"label": "true"}, "label is 'true'; true or false"),
    ("kto", "missing column", {"label": LOST}, "label is missing"),
    ("helpsteer2", "score not a number", {"helpfulness": None}, "helpfulness is null"),
    ("helpsteer3", "id out of range", {"overall_preference": -4}, "is -4; a whole number from -3 to 3"),
    ("helpsteer3", "id out of range", {"overall_preference": 0.5}, "is 0.5; a whole number"),
    ("question-pairs", "several prompts", {"context": "A kitchen."}, "'question' and 'context' both hold a text"),
    ("question-pairs", "several prompts", {"input": "A kitchen."}, "(prompt=question or prompt=input)"),
]


def changed(values: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = {**values, **change}
    return {name: value for name, value in merged.items() if value is not LOST}


@pytest.mark.parametrize(("name", "rule", "change", "says"), BROKEN)
def test_one_broken_row_refuses_the_file(
    tmp_path: Path, name: str, rule: str, change: dict[str, Any], says: str
) -> None:
    good = EXAMPLES[name][0]
    bad = changed(good, change)
    path = write_rows(tmp_path / "f.jsonl", [good, bad, good, bad])
    with pytest.raises(PreferenceError) as caught:
        read_preferences(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: line 2: ") and says in message and message.endswith("(and 1 more rows)")
    assert "\n" not in message
    assert [(fault.rule, fault.line) for fault in caught.value.faults] == [(rule, 2), (rule, 4)]
    assert READING_RULES[rule] == "error"


LEFT_OUT: list[tuple[str, dict[str, Any], str, str]] = [
    ("trl-plain-explicit", {"rejected": None}, "not a text", "rejected is null; a text is needed"),
    ("trl-plain-explicit", {"chosen": 3}, "not a text", "chosen is 3"),
    ("trl-plain-explicit", {"prompt": True}, "not a text", "prompt is True"),
    ("trl-plain-explicit", {"chosen": [message("assistant", KIND)]}, "mixed plain and chat",
     "chosen is a list of 1; a text is needed, as in most rows"),
    ("trl-chat-explicit", {"rejected": RUDE}, "mixed plain and chat", "a list of messages is needed, as in most rows"),
    ("safety-pairs", {"safer": [message("assistant", KIND)]}, "mixed plain and chat", "safer is a list of 1"),
    ("trl-plain-explicit", {"rejected": LOST}, "not a text", "rejected is missing"),
    ("trl-plain-explicit", {"chosen": LONE}, "lone surrogate", "half of a character"),
    ("trl-plain-explicit", {"system": LONE}, "lone surrogate", "system holds half"),
    ("trl-plain-explicit", {"system": 7}, "not a text", "system is 7; a text is needed"),
    ("trl-plain-explicit", {"system": TALK[1:2]}, "wrong role", "system holds a turn of role 'user'"),
    ("question-pairs", {"history": "Hello"}, "not a text", "history is no list of [user, assistant]"),
    ("trl-chat-explicit", {"chosen": [message("assistant", LONE)]}, "lone surrogate", "message 1 of chosen"),
    ("trl-chat-explicit", {"rejected": None}, "not a text", "rejected is null"),
    ("trl-chat-explicit", {"rejected": []}, "not a text", "rejected holds no message"),
    ("trl-chat-explicit", {"rejected": ["a"]}, "not a text", "message 1 of rejected is no object"),
    ("trl-chat-explicit", {"rejected": [{"role": "assistant"}]}, "not a text", "message 1 of rejected has no content"),
    ("trl-chat-explicit", {"rejected": [message("user", RUDE)]}, "wrong role", "rejected ends with the role 'user'"),
    ("trl-chat-explicit", {"prompt": [message("narrator", ASK)]}, "wrong role", "known: system, developer, user,"),
    ("trl-chat-explicit", {"prompt": [{"content": ASK}]}, "wrong role", "has the role null"),
    ("trl-chat-explicit", {"prompt": TALK[:1]}, "wrong role", "does not end with a turn of role 'user'"),
    ("trl-chat-explicit", {"prompt": TALK[1:2] + TALK[:1] + TALK[3:]}, "wrong role", "turn 2 is of role 'system'"),
    ("trl-chat-explicit", {"prompt": TALK[:2] + TALK[3:]}, "wrong role", "turn 3 is of role 'user'"),
    ("trl-chat-explicit", {"prompt": [*TALK, message("tool", "4")]}, "tool turn", "message 5 of prompt"),
    ("trl-chat-explicit", {"prompt": [message("user", ASK), {"role": "assistant", "content": None, "tool_calls": [1]}]},
     "tool turn", "message 2 of prompt calls a tool"),
    ("sharegpt-pairs", {"conversations": [{"from": "human", "value": ASK}, {"from": "observation", "value": "4"}]},
     "tool turn", "message 2 of conversations"),
    ("trl-chat-explicit", {"tools": [{"name": "grind"}]}, "tool turn", "tools holds a list of 1"),
    ("trl-chat-explicit", {"tools": '[{"name": "grind"}]'}, "tool turn", "which goes with the prompt"),
    ("trl-plain-explicit", {"images": ["knife.png"]}, "image or sound", "images holds a list of 1"),
    ("trl-chat-explicit", {"prompt": [message("user", [{"type": "image_url", "image_url": "x"}])]},  # type: ignore[arg-type]
     "image or sound", "message 1 of prompt holds a part of type 'image_url'"),
    ("messages-pairs", {end: [message("user", "Oh?"), message("assistant", end)] for end in ("chosen", "rejected")},
     "parting transcripts", "do not go on from the turns of messages"),
    ("alpaca-pairs", {"history": ["Hello"]}, "not a text", "history is no list of [user, assistant]"),
    ("alpaca-outputs", {"output": [KIND]}, "not a text", "output is no list of two answers"),
    ("kto-messages", {"messages": TALK}, "wrong role", "messages ends with the role 'user'"),
    ("hh-rlhf", {"chosen": "no marker"}, "wrong role", "no turn of the Assistant"),
    ("hh-rlhf", {"chosen": "Hm.\n\nHuman: a\n\nAssistant: b"}, "wrong role", "opens with 'Hm.'"),
    ("hh-rlhf", {"chosen": SCRIPT + KIND + "\n\nHuman: Thanks!"}, "wrong role", "ends with a turn of the Human"),
    ("pku-processed-hh", {"chosen": KIND}, "not a text", "an object"),
    ("pku-processed-hh", {"chosen": {"text": None}}, "not a text", "the text of chosen is null"),
    ("pku-processed-hh", {"context": [{"role": "narrator", "text": ASK}]}, "wrong role", "the role 'narrator'"),
    ("pku-processed-hh", {"context": LOST}, "not a text", "context is missing"),
    ("safety-pairs", {"safer": ""}, "empty response", "answer 1 of 2 is blank"),
    ("trl-plain-explicit", {"rejected": " \n\t"}, "empty response", "answer 2 of 2 is blank"),
    ("trl-plain-explicit", {"prompt": "  "}, "empty prompt", "the prompt is blank"),
    ("hh-rlhf", {"rejected": SCRIPT}, "empty response", "answer 2 of 2 is blank"),
    ("hh-rlhf", {"rejected": SCRIPT.replace("Good day.", "Go away.") + RUDE}, "parting transcripts", "part at turn 2"),
    ("hh-rlhf", {"rejected": "\n\nHuman: Ho\n\nAssistant: a"}, "parting transcripts", "share no turn"),
    ("hh-rlhf", {"rejected": SCRIPT + RUDE + "\n\nHuman: Oh\n\nAssistant: b"}, "parting transcripts", "4 and 6 turns"),
    ("trl-chat-implicit", {"rejected": [*TALK[:2], message("assistant", "Hi")]}, "parting transcripts", "at turn 3"),
    ("trl-plain-implicit", {"rejected": "Else"}, "parting transcripts", "same words"),
    ("trl-plain-implicit", {"rejected": f"{ASK} {KIND}"}, "identical pair", "the same text"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "rule", "says"), LEFT_OUT)
def test_row_is_left_out_and_counted(tmp_path: Path, name: str, change: dict, rule: str, says: str) -> None:
    good, row = EXAMPLES[name]
    file = read_preferences(write_rows(tmp_path / "f.jsonl", [good, changed(good, change)]))
    assert (file.format, file.total, file.rows) == (name, 2, (row,))
    assert [(fault.rule, fault.line) for fault in file.faults] == [(rule, 2)]
    assert says in file.faults[0].what
    assert READING_RULES[rule] == "drop"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {
                "prompt": [message("customer", ASK)],
                "chosen": [message("agent", KIND)],
                "rejected": [message("agent", RUDE)],
            },
            "line 1: message 1 of prompt has the role 'customer'; known: system, developer, user",
        ),
        ({"prompt": ASK, "chosen": KIND, "rejected": RUDE, "images": ["a.png"]}, "images holds a list of 1"),
        ({"prompt": ASK, "chosen": None, "rejected": None}, "chosen is null"),
    ],
)
def test_a_file_of_which_no_row_can_be_read_is_refused_in_one_line(tmp_path: Path, values: dict, says: str) -> None:
    with pytest.raises(PreferenceError) as caught:
        read_preferences(write_rows(tmp_path / "f.jsonl", [values] * 3))
    assert says in str(caught.value) and str(caught.value).endswith("(and 2 more rows)")
    assert [fault.rule for fault in caught.value.faults] == ["no readable row"] * 3


@pytest.mark.parametrize(
    "values",
    [
        {"chosen": "Yes", "rejected": "No"},
        {"chosen": [message("assistant", KIND)], "rejected": [message("assistant", RUDE)]},
    ],
)
def test_no_common_prompt_in_any_row_refuses_the_file(tmp_path: Path, values: dict) -> None:
    with pytest.raises(PreferenceError) as caught:
        read_preferences(write_rows(tmp_path / "f.jsonl", [values] * 3))
    assert [fault.rule for fault in caught.value.faults] == ["no common prompt"] * 3


def test_damaged_files_are_one_clear_line(tmp_path: Path) -> None:
    line = json.dumps(EXAMPLES["safety-pairs"][0])
    whole = gzip.compress((line + "\n").encode() * 50)
    contents = {
        "cut.jsonl.gz": (whole[: len(whole) // 2], "cut short"),
        "cut.jsonl": ((line + "\n" + line[:20]).encode(), "line 2: not JSON"),
        "wide.jsonl": (line.encode("utf-16"), "UTF-16"),
        "latin.jsonl": (line.encode() + b"\n{\xe9}", "line 2: byte 0xe9"),
        "nan.jsonl": (b'{"prompt": "p", "chosen": NaN, "rejected": "b"}', "line 1: chosen is nan; a text is"),
        "twice.jsonl": (
            f'{line}\n{{"prompt": "p", "safer": "a", "prompt": "q"}}'.encode(),
            "line 2: .*'prompt' occurs twice",
        ),
        "inside.jsonl": (b'{"prompt": [{"role": "a", "role": "b"}]}', "line 1: .*'role' occurs twice"),
        "cut.json": (f"[\n{line},\n{line[:20]}".encode(), "line 3: not JSON"),
        "lines.json": (f"{line}\n{line}".encode(), "line 2: .*one object a line is named .jsonl"),
        "line.json": (line.encode(), "is an object; a list .*one object a line is named .jsonl"),
        "empty.jsonl": (b"", "empty"),
        "cut.parquet": (b"PAR1 and no more", "not a readable Parquet"),
    }
    for name, (content, says) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=says):
            read_preferences(tmp_path / name)


def test_messages_as_python_prints_them_are_left_out(tmp_path: Path) -> None:
    talk, answer = [message("user", ASK)], [message("assistant", KIND)]
    rows = [[json.dumps(talk), json.dumps(answer), json.dumps([message("assistant", RUDE)])], [talk, answer, answer]]
    for kept in (rows, rows[1:]):
        with (tmp_path / "f.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["prompt", "chosen", "rejected"], *kept])
        says = r"prompt holds messages as Python prints them \(.*\); write them as JSON"
        if kept == rows:
            (fault,) = read_preferences(tmp_path / "f.csv").faults
            assert (fault.rule, fault.line) == ("not a text", 3) and re.match(says, fault.what)
        else:
            with pytest.raises(PreferenceError, match=f"line 2: {says}"):
                read_preferences(tmp_path / "f.csv")


def test_rows_of_the_rarer_kind_are_left_out_whichever_comes_first(tmp_path: Path) -> None:
    talk, answer = json.dumps([message("user", ASK)]), json.dumps([message("assistant", KIND)])
    chat, plain = [talk, answer, answer], [ASK, KIND, RUDE]
    for rows, line in (
        ([chat, plain, chat], 3),
        ([plain, chat, plain], 3),
        ([chat, plain, plain], 2),
        ([plain, chat], 3),
    ):
        with (tmp_path / "f.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["prompt", "chosen", "rejected"], *rows])
        read = read_preferences(tmp_path / "f.csv")
        assert [(fault.rule, fault.line) for fault in read.faults] == [("mixed plain and chat", line)]
        assert {row.prompt.text for row in read.rows} == {ASK}


def test_reading_parquet_starts_no_thread(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [EXAMPLES["safety-pairs"][0]] * 2000
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "f.parquet", row_group_size=100)
    program = (
        "import os, pathlib, pyarrow.parquet\nfrom dualign.data.table_files import read_parquet\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        f"assert len(read_parquet(pathlib.Path({str(tmp_path / 'f.parquet')!r}))) == 2000\n"
        "after = len(os.listdir('/proc/self/task'))\nassert after == before, (before, after)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_parquet_with_a_text_that_is_not_utf8(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    offsets = pyarrow.py_buffer((0).to_bytes(4, "little") + (2).to_bytes(4, "little"))
    texts = pyarrow.StringArray.from_buffers(1, offsets, pyarrow.py_buffer(b"\xff\xfe"))
    table = pyarrow.table({"prompt": texts, "chosen": texts, "rejected": texts})
    pyarrow.parquet.write_table(table, tmp_path / "f.parquet")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_preferences(tmp_path / "f.parquet")


def test_folder_stands_for_its_one_data_file(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no data file"):
        read_preferences(tmp_path)
    (tmp_path / "README.txt").write_text("about")
    (tmp_path / ".cache").mkdir()
    write_rows(tmp_path / ".cache" / "old.jsonl", [{}])
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train.jsonl", [EXAMPLES["safety-pairs"][0]])
    assert read_preferences(tmp_path).rows == (EXAMPLES["safety-pairs"][1],)
    write_rows(tmp_path / "data" / "test.jsonl", [EXAMPLES["safety-pairs"][0]])
    with pytest.raises(MissingError, match=r"2 data files; name one: data/test.jsonl, data/train.jsonl"):
        read_preferences(tmp_path)


def test_data_set_of_the_hub_is_read_from_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[dict[str, Any]] = []

    def cached(name: str, **how: Any) -> str:
        asked.append({"name": name, **how})
        if name != "org/pairs":
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    write_rows(tmp_path / "train.jsonl", [EXAMPLES["safety-pairs"][0]])
    assert read_preferences("org/pairs@abc123").rows == (EXAMPLES["safety-pairs"][1],)
    assert read_preferences("org/pairs@abc123/train.jsonl").path == "org/pairs@abc123/train.jsonl"
    with pytest.raises(MissingError, match=r"no data set 'org/other' at 'v1'; download it and name a local path"):
        read_preferences("org/other@v1")
    with pytest.raises(MissingError, match=r"needs its revision \(org/pairs@COMMIT\), or name a local path"):
        read_preferences("org/pairs")
    assert all(how["local_files_only"] and how["repo_type"] == "dataset" for how in asked)
    assert asked[0]["revision"] == "abc123"
    with pytest.raises(MissingError, match="no such file"):
        read_preferences(tmp_path / "nowhere.jsonl")
