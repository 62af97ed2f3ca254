"""Pairs as the tools of the field write them: which column is the prompt, who speaks, and what a label says."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dualign.data.checks.check import check, verdict, write_clean
from dualign.data.checks.statistics import summary
from dualign.data.formats.chat_forms import PROMPT_LIKE, PROMPTS
from dualign.data.formats.table import describe, preference_file, read_preferences
from dualign.data.preferences import PreferenceError, PreferenceRow, grouped
from dualign.data.table_files import Row
from dualign.data.tables import Table
from dualign.errors import DataError
from dualign.records import Turn
from preference_files import ASK, CHATTED, EXAMPLES, KIND, PLAIN, RUDE, SYSTEM, TALK, message, write_rows

SHARED = Path(os.environ.get("DUALIGN_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
TRANSCRIPTS = SHARED / "hh-rlhf-sample" / "harmless_base_test_300.jsonl"
OPENING = "Here is how: "
PAIR = {"chosen": OPENING + KIND, "rejected": OPENING + RUDE}
"""Two answers that open with the same words, which are no prompt."""


def only(*rows: dict[str, Any], **how: Any) -> PreferenceRow:
    """Return what the first of these rows is read as; nothing is left out."""
    file = preference_file(Table("f", [Row(line, values) for line, values in enumerate(rows, start=1)]), **how)
    assert not file.faults and file.total == len(rows)
    return file.rows[0]


def texts(row: PreferenceRow) -> list[str]:
    return [answer.text for answer in row.answers]


@pytest.mark.parametrize("name", PROMPTS)
def test_answers_that_open_alike_are_no_prompt_beside_a_column_of_one(name: str) -> None:
    row = only({name: ASK, **PAIR})
    assert (row.prompt, texts(row), row.better) == (PLAIN, [OPENING + KIND, OPENING + RUDE], 0)
    talk = only({name: TALK, **PAIR})
    assert (talk.prompt, texts(talk)) == (CHATTED, texts(row))


@pytest.mark.parametrize("name", [*sorted(PROMPT_LIKE - set(PROMPTS)), "Question", "Prompt"])
def test_columns_that_may_be_the_prompt_ask_for_their_mapping(name: str) -> None:
    values = {name: ASK, **PAIR}
    with pytest.raises(PreferenceError, match=rf"line 1: .*prompt={name}\)"):
        only(values)
    with pytest.raises(PreferenceError, match=rf"{name!r} may be the prompt; map it \(prompt={name}\)"):
        only(values, format="trl-plain-implicit")
    assert only(values, columns={"prompt": name}).prompt == PLAIN
    assert only({name: " ", **PAIR}).prompt.text == OPENING.strip()  # a column that says nothing is none


def test_a_conversation_under_any_name_may_be_the_prompt() -> None:
    with pytest.raises(PreferenceError, match=r"'trajectory' may be the prompt; map it \(prompt=trajectory\)"):
        only({"trajectory": TALK, **PAIR})
    assert only({"trajectory": TALK, **PAIR}, columns={"prompt": "trajectory"}).prompt == CHATTED


def test_of_two_prompts_the_mapping_decides() -> None:
    values = {"question": ASK, "context": "A kitchen.", **PAIR}
    with pytest.raises(PreferenceError, match=r"map the right one \(prompt=question or prompt=context\)"):
        only(values)
    assert only(values, columns={"prompt": "question"}).prompt.text == ASK
    assert only({**values, "context": f" {ASK}\n"}).prompt.text == ASK
    assert only({**values, "prompt": "Well?"}).prompt.text == "Well?"


def test_unknown_columns_are_told_which_mapping_would_do() -> None:
    values = {"problem": ASK, "good": KIND, "bad": RUDE}
    with pytest.raises(PreferenceError, match=r"map them \(chosen=NAME, rejected=NAME, prompt=problem\)"):
        only(values)
    with pytest.raises(PreferenceError, match=r"map them \(chosen=NAME, rejected=NAME\)"):
        only({"question": ASK, "good": KIND, "bad": RUDE})
    row = only({"question": ASK, "good": KIND, "bad": RUDE}, columns={"chosen": "good", "rejected": "bad"})
    assert (row.prompt, texts(row)) == (PLAIN, [KIND, RUDE])


def test_instruction_is_followed_by_its_input_and_its_history() -> None:
    values = {"instruction": "Translate.", "input": "Guten Tag", "history": [["Hello", "Good day."]], **PAIR}
    row = only(values)
    assert row.prompt.text == "Translate.\nGuten Tag"
    assert [turn.text for turn in row.prompt.history] == ["Hello", "Good day."]
    assert only({**values, "input": "", "history": "[]"}).prompt.text == "Translate."
    assert only({**values, "instruction": ""}, {**values}).prompt.text == "Guten Tag"
    asked = only({"question": ASK, "history": TALK[1:3], **PAIR}).prompt
    assert (asked.text, asked.history) == (ASK, CHATTED.history[1:])


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - {"scored-pairs"}))
def test_system_column_is_a_system_turn_in_every_format(name: str) -> None:
    values, row = EXAMPLES[name]
    read = only({**values, "system": SYSTEM.text}, {**values, "system": None})
    own = any(turn.role == "system" for turn in row.prompt.history)
    assert read.prompt.history == (row.prompt.history if own else (SYSTEM, *row.prompt.history))
    assert "system" not in read.prompt.columns and texts(read) == texts(row)
    assert read.prompt.id == (row.prompt if own else only({**values, "persona": SYSTEM.text},
                                                          columns={"system": "persona"}).prompt).id  # fmt: skip
    assert own or read.prompt.id != row.prompt.id
    assert only({**values, "system": " "}).prompt.history == row.prompt.history


def test_a_conversations_own_system_turn_goes_before_the_columns() -> None:
    values = EXAMPLES["sharegpt-pairs"][0] | {"system": "Answer in French."}
    assert only(values).prompt.history[0] == SYSTEM
    assert only({"prompt": ASK, "system": TALK[:1], **PAIR}).prompt.history == (SYSTEM,)
    assert only({"prompt": ASK, "system_prompt": "Be brief.", **PAIR}).prompt.history == (Turn("system", "Be brief."),)


@pytest.mark.parametrize("user", ["user", "USER", "human", "Human", "Human:", "prompter"])
@pytest.mark.parametrize("model", ["assistant", "Assistant", "gpt", "chatgpt", "bot", "model"])
def test_speakers_of_every_dialect(user: str, model: str) -> None:
    said = [(user, "Hello"), (model, "Good day."), (user, ASK)]
    for keys in (("role", "content"), ("from", "value"), ("role", "text")):
        talk = [dict(zip(keys, turn, strict=True)) for turn in said]
        ends = {name: [*talk, dict(zip(keys, (model, text), strict=True))] for name, text in PAIR.items()}
        row = only(ends)
        assert row.prompt.history == (Turn("user", "Hello"), Turn("assistant", "Good day."))
        assert (row.prompt.text, texts(row)) == (ASK, list(PAIR.values()))


@pytest.mark.parametrize("name", ["openrlhf-messages", "sharegpt-pairs", "messages-pairs", "trl-chat-explicit",
                                  "trl-chat-implicit", "kto-messages", "helpsteer3"])  # fmt: skip
@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_messages_as_json_text_are_messages_in_any_file(tmp_path: Path, name: str, ending: str) -> None:
    import pyarrow
    import pyarrow.parquet

    values, row = EXAMPLES[name]
    cells = {key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in values.items()}
    path = tmp_path / f"f.{ending}"
    if ending == "jsonl":
        write_rows(path, [cells])
    elif ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([cells]), path)
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([list(cells), list(cells.values())])
    file = read_preferences(path)
    assert (file.format, file.faults) == (name, ())
    assert file.rows == (replace(row, line=2 if ending == "csv" else 1),)


def in_dialects(row: PreferenceRow) -> dict[str, dict[str, Any]]:
    """Return what the tools of the field would write for one row of two answers."""
    turns = [*row.prompt.history, Turn("user", row.prompt.text)]
    chosen, rejected = texts(row)
    talk = [message(turn.role, turn.text) for turn in turns]
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    shared = [{"from": names[turn.role], "value": turn.text} for turn in turns]
    whole = {name: [*talk, message("assistant", said)] for name, said in (("chosen", chosen), ("rejected", rejected))}
    earlier = [[first.text, second.text] for first, second in zip(turns[::2], turns[1::2], strict=False)]
    return {
        "trl-chat-implicit": whole,
        "messages-pairs": {"messages": talk, "chosen": whole["chosen"][-1], "rejected": whole["rejected"][-1]},
        "openrlhf-messages": {"context_messages": json.dumps(talk), "chosen": chosen, "rejected": rejected},
        "sharegpt-pairs": {
            "conversations": shared,
            "chosen": {"from": "gpt", "value": chosen},
            "rejected": {"from": "gpt", "value": rejected},
        },
        "alpaca-pairs": {"instruction": row.prompt.text, "input": "", "history": earlier, "chosen": chosen,
                         "rejected": rejected},
        "helpsteer3": {"context": talk, "response1": chosen, "response2": rejected, "overall_preference": -3},
    }  # fmt: skip


def assert_dialects_agree(rows: list[PreferenceRow]) -> None:
    written = [in_dialects(row) for row in rows]
    for name in written[0]:
        lines = [Row(row.line, values[name]) for row, values in zip(rows, written, strict=True)]
        file = preference_file(Table("f", lines))
        assert (file.format, file.rows, file.faults) == (name, tuple(rows), ())


def test_all_dialects_say_the_same() -> None:
    script = EXAMPLES["hh-rlhf"][1]
    alone = replace(script, line=2, prompt=PLAIN)
    assert_dialects_agree([script, alone])


@pytest.mark.skipif(not TRANSCRIPTS.is_file(), reason="no folder of shared data")
def test_all_dialects_say_the_same_of_real_conversations() -> None:
    assert_dialects_agree(list(read_preferences(TRANSCRIPTS).rows))


def test_python_lists_of_messages_are_read_in_no_file() -> None:
    with pytest.raises(PreferenceError, match="chosen holds messages as Python prints them"):
        only({"chosen": str([message("user", ASK)]), "rejected": str([message("user", ASK)])})


def test_an_answer_that_is_json_stays_a_text() -> None:
    said = ['[{"name": "Ada"}]', '{"role": "user"}', '{"from": "Rome", "value": 3}', "[]", "{"]
    rows = [{"prompt": ASK, "chosen": text, "rejected": RUDE} for text in said]
    file = preference_file(Table("f", [Row(line, values) for line, values in enumerate(rows, start=1)]))
    assert [row.answers[0].text for row in file.rows] == said


def test_content_of_text_parts_is_their_text() -> None:
    def parts(*words: str) -> list[dict[str, Any]]:
        return [{"type": "text", "text": word, "image_url": None} for word in words]

    talk = [{"role": "user", "content": parts("How do I ", "sharpen a knife?")}]
    for ask in (talk, talk[0]["content"]):
        ends = {name: [{"role": "assistant", "content": parts(text)}] for name, text in PAIR.items()}
        row = only({"prompt": ask, **ends})
        assert (row.prompt, texts(row)) == (PLAIN, list(PAIR.values()))
    assert texts(only({"prompt": ASK, "chosen": parts(KIND), "rejected": parts(RUDE)})) == [KIND, RUDE]


def test_answers_that_repeat_the_conversation_are_not_read_twice() -> None:
    ends = {name: [*TALK, message("assistant", text)] for name, text in PAIR.items()}
    for columns in (
        {"messages": TALK},
        {"messages": ends["chosen"]},
        {"prompt": ASK, "messages": ends["chosen"]},
        {"prompt": TALK},
        {"prompt": TALK[:1]},
    ):
        row = only({**columns, **ends})
        assert (row.prompt, texts(row)) == (CHATTED, list(PAIR.values())), columns
    last = {name: [TALK[-1], message("assistant", text)] for name, text in PAIR.items()}
    row = only({"conversations": TALK, **last})
    assert (row.prompt, texts(row)) == (CHATTED, list(PAIR.values()))


def test_empty_columns_of_tools_and_images_are_neither_faults_nor_slices() -> None:
    empty = {"tools": "[]", "images": [], "image": None, "videos": [None], "functions": "", "audio": {"bytes": None}}
    assert dict(only({"prompt": ASK, **PAIR, **empty}).prompt.columns) == {}
    assert dict(only({"prompt": ASK, **PAIR, "tools": "hammer"}).prompt.columns) == {"tools": "hammer"}


def test_two_turns_of_one_speaker_cost_their_rows_alone(tmp_path: Path) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": f"Question {number}: what is {number} + 1?"}],
         "chosen": {"from": "gpt", "value": f"It is {number + 1}."},
         "rejected": {"from": "gpt", "value": f"I forgot what {number} is."}}
        for number in range(2003)
    ]  # fmt: skip
    for number in (17, 400, 1200, 2002):
        rows[number]["conversations"] *= 2  # type: ignore[operator]
    file = read_preferences(write_rows(tmp_path / "f.jsonl", rows))
    assert (file.total, len(file.rows), [fault.line for fault in file.faults]) == (2003, 1999, [18, 401, 1201, 2003])
    assert {fault.rule for fault in file.faults} == {"wrong role"}
    report = check([tmp_path / "f.jsonl"])
    assert (report.accepted, report.errors, report.dropped, report.kept) == (True, 0, 4, 1999)
    (rule,) = [one for one in report.rules if one.severity != "warn"]
    assert (rule.rule, rule.rows) == ("wrong role", [18, 401, 1201, 2003])
    assert verdict(report) == "Fit for training: 1,999 of 2,003 rows kept, 4 dropped (0.2%)."


def test_sign_of_a_preference_names_the_better_response() -> None:
    for name, first, second in (("helpsteer3", KIND, RUDE), ("helpsteer2-preference", RUDE, KIND)):
        values = EXAMPLES[name][0]
        strength = next(column for column in values if column.endswith(("_preference", "_strength")))
        for given, better in ((-3, 0), (-1, 0), (0, None), (1, 1), (3, 1), (2.0, 1)):
            row = only({**values, strength: given})
            assert (texts(row), row.better) == ([first, second], better), given


def test_rated_answers_become_a_pair_with_the_more_helpful_one_as_the_better() -> None:
    said = ((ASK, RUDE, 1), (ASK, KIND, 3), ("Why?", "So.", 2), ("Why?", "No.", 2))
    rows = [{"prompt": ask, "response": text, "helpfulness": number} for ask, text, number in said]
    file = preference_file(Table("f", [Row(line, values) for line, values in enumerate(rows, start=1)]))
    assert file.format == "helpsteer2" and [row.answers[0].reward for row in file.rows] == [1, 3, 2, 2]
    group, tie = grouped(file.rows)
    assert (texts(group), group.better, group.safer) == ([RUDE, KIND], 1, None)
    assert (texts(tie), tie.better) == (["So.", "No."], None)


def test_prompt_of_several_turns_is_parted_at_its_markers() -> None:
    asked = f"Hello\n<extra_id_1>Assistant\nGood day.\n<extra_id_1>User\n{ASK}"
    values = EXAMPLES["helpsteer2"][0] | {"prompt": asked}
    assert only(values).prompt.history == (Turn("user", "Hello"), Turn("assistant", "Good day."))
    assert only(values).prompt.text == ASK


def test_labels_of_single_answers_say_which_are_never_to_be_imitated(tmp_path: Path) -> None:
    rows = [{"prompt": ask, "completion": text, "label": label}
            for ask, text, label in ((ASK, RUDE, False), (ASK, KIND, True), ("Why?", "Hm.", False))]  # fmt: skip
    path = write_rows(tmp_path / "f.jsonl", rows)
    file = read_preferences(path)
    assert (file.format, [row.answers[0].desirable for row in file.rows]) == ("kto", [False, True, False])
    (group,) = grouped(file.rows)
    assert (texts(group), group.better) == ([RUDE, KIND], 1)
    report = check([path])
    labels = report.statistics["labels"]
    assert (report.accepted, labels["desirable"], labels["judged_answers"], labels["better_given"]) == (
        True,
        1 / 3,
        3,
        1,
    )
    assert ("labels", "33.3% of 3 answers are labelled true (desirable)") in summary(report.statistics)
    unsafe, safe = (only(EXAMPLES["beavertails"][0] | {"is_safe": flag}).answers[0] for flag in (False, True))
    assert (unsafe.safe, safe.safe) == (False, True)
    assert all((answer.safe, answer.desirable) == (None, None) for answer in only({"prompt": ASK, **PAIR}).answers)


def test_what_was_read_is_said_with_its_columns(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "f.jsonl", [{"instruction": ASK, "input": "", "system": "Be brief.", **PAIR}])
    assert "alpaca-pairs" in describe(read_preferences(path))
    assert set(read_preferences(path).columns) == {"instruction", "input", "system", "chosen", "rejected"}
    report = check([path])
    assert report.accepted and not report.rules


def test_a_path_leads_to_prompt_and_answers_inside_objects(tmp_path: Path) -> None:
    row = {"doc": {"question": ASK}, "answers": [{"text": KIND, "rank": 1}, {"text": RUDE, "rank": 2}]}
    path = {"prompt": "doc.question", "chosen": "answers.0.text", "rejected": "answers.1.text"}
    read = only(row, columns=path)
    assert (read.prompt, texts(read), read.better) == (PLAIN, [KIND, RUDE], 0)
    assert texts(only(row | {"answers.0.text": OPENING}, columns=path)) == [OPENING, RUDE]  # a column of that very name
    with pytest.raises(DataError, match="no column 'doc.answer' to read as 'prompt'"):
        only(row, columns={**path, "prompt": "doc.answer"})
    report = check([write_rows(tmp_path / "f.jsonl", [row])], columns=path)
    assert (report.kept, [one.rule for one in report.rules]) == (1, [])
    clean, _ = write_clean(report, tmp_path / "kept.jsonl")
    assert [texts(one) for one in read_preferences(clean).rows] == [[KIND, RUDE]]


def test_a_label_that_is_null_under_another_name_is_no_missing_column() -> None:
    rows = [{"prompt": ASK, "completion": KIND, "good": True}, {"prompt": ASK, "completion": RUDE, "good": None}]
    with pytest.raises(PreferenceError, match="line 2: label is null") as caught:
        only(*rows, columns={"label": "good"})
    assert caught.value.faults[0].rule == "mixed label types"


def test_a_request_with_tools_is_left_out() -> None:
    request = EXAMPLES["openai-pairs"][0]
    armed = request | {"input": request["input"] | {"tools": [{"type": "function"}]}}
    rows = [Row(line, values) for line, values in enumerate([request, armed, request | {"input": "Why?"}], start=1)]
    file = preference_file(Table("f", rows))
    assert [(fault.rule, fault.line) for fault in file.faults] == [("tool turn", 2), ("not a text", 3)]
