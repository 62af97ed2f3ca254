"""What a warm start imitates: rows of a file inside ``where``, never an answer that is marked as bad."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import dualign
from dualign.config import Config, load_config
from dualign.data.prompts import read_demonstrations
from dualign.errors import ConfigError, DataError, MissingError
from dualign.job.assembly import _examples
from dualign.job.inputs import load_demonstrations
from dualign.models.language_model import Wording
from dualign.models.loading import load_reader
from tiny_jobs import LETTERS, job, letter_model, write_config

Rows = list[dict[str, Any]]


def numbered(count: int, **columns: Any) -> Rows:
    """Return rows to imitate, each with a prompt of its own."""
    return [{"prompt": f"{a}{b} {a}{b}{b}", "response": "abc.", **columns} for a in "abcdefgh" for b in "abcdefgh"][
        :count
    ]


def bad(number: int, **columns: Any) -> dict[str, Any]:
    """Return a row whose answer nobody should give."""
    return {"prompt": f"ij {'j' * number}", "response": "jjj.", **columns}


def written(folder: Path, rows: Rows) -> Path:
    path = folder / "shown.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("demonstrations")
    config = job(folder)
    letter_model(folder / "model", letters=LETTERS + ".")
    return folder, config


def with_stage(config: Mapping[str, Any], *, count: int = 3, **mix: Any) -> Config:
    stage = {"demonstrations": "shown.jsonl", "mix": [{"count": count, "target": "demonstration", **mix}]}
    return Config.model_validate({**config, "policy": {**config["policy"], "warm_start": [stage]}})


def notes_of(config: Config, folder: Path) -> list[str]:
    return load_demonstrations(config, folder)[1]


@pytest.mark.parametrize(
    "marks",
    [
        ({"label": True}, {"label": False}),
        ({"is_safe": True}, {"is_safe": False}),
        ({"label": 1}, {"label": 0}),
        ({"label": "true"}, {"label": "False"}),
        ({"kto_tag": 1.0}, {"kto_tag": 0.0}),
        ({"label": 1}, {"label": -1}),
        ({"label": "Yes"}, {"label": "no "}),
        ({"label": "chosen"}, {"label": "rejected"}),
        ({"label": "None"}, {"label": "False"}),
        ({"is_safe": "not sure"}, {"is_safe": False}),
        ({}, {"response": None, "rejected": "jjj."}),
        ({"rejected": "hhh."}, {"response": "", "rejected": "jjj."}),
    ],
)
def test_an_answer_that_is_marked_as_bad_is_not_imitated(tmp_path: Path, marks: tuple[dict[str, Any], ...]) -> None:
    good, wrong = marks
    path = written(tmp_path, [*numbered(20, **good), *(bad(number) | wrong for number in range(5))])
    found = read_demonstrations(path, imitated=True)
    assert (found.rows, found.negative, found.broken, found.empty) == (25, 5, (), 0)
    assert [answer for _, answer in found.demonstrations] == ["abc."] * 20
    assert read_demonstrations(written(tmp_path, [*numbered(20, **good)]), imitated=True).negative == 0


def test_words_in_a_column_of_a_flags_name_mark_nothing(tmp_path: Path) -> None:
    rows = [*numbered(20, label="unsafe"), *({**row, "label": "safe"} for row in numbered(30)[20:])]
    found = read_demonstrations(written(tmp_path, rows), imitated=True)
    assert (found.negative, len(found.demonstrations)) == (0, 30)
    levels = [{**row, "label": number % 3} for number, row in enumerate(numbered(30))]
    assert read_demonstrations(written(tmp_path, levels), imitated=True).negative == 0


def test_an_answer_of_weight_0_is_not_imitated(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "ab"}
    talks = [[asked, {"role": "assistant", "content": f"{word}.", "weight": 1 - k}] for k, word in enumerate("ij")]
    found = read_demonstrations(written(tmp_path, [{"messages": talk} for talk in talks]), imitated=True)
    assert ([answer for _, answer in found.demonstrations], found.negative) == (["i."], 1)


def test_columns_of_other_names_are_renamed(tmp_path: Path, made: tuple[Path, dict[str, Any]]) -> None:
    folder, config = made
    written(folder, [{"doc": {"question": row["prompt"]}, "answer": "abc."} for row in numbered(5)])
    stage = {"demonstrations": "shown.jsonl", "mix": [{"count": 5, "target": "demonstration"}]}

    def notes(**rename: str) -> list[str]:
        policy = {**config["policy"], "warm_start": [{**stage, "rename": rename}]}
        return notes_of(Config.model_validate({**config, "policy": policy}), folder)

    with pytest.raises(DataError, match=r"--columns prompt=doc.question,response=answer \(in a config: rename\)"):
        notes()
    with pytest.raises(ConfigError, match=r"policy.warm_start: shown.jsonl: rename: .*; did you mean 'prompt'\?"):
        notes(promt="doc.question")
    (note,) = notes(prompt="doc.question", response="answer")
    assert note.startswith("shown.jsonl: demonstrations, 5 prompts to imitate an answer to (5 rows: ")


def test_flagged_answers_beside_kinds_of_harm_are_imitated(tmp_path: Path) -> None:
    rows = [*numbered(4, category={"theft": False}, is_safe=True), bad(1, category={"theft": True}, is_safe=False)]
    found = read_demonstrations(written(tmp_path, rows), imitated=True)
    assert (found.layout, len(found.demonstrations), found.negative) == ("demonstrations", 4, 1)


def test_a_reader_that_does_not_imitate_gets_every_row(tmp_path: Path) -> None:
    path = written(tmp_path, [*numbered(3, label=True), bad(1, label=False)])
    assert len(read_demonstrations(path).demonstrations) == 4
    written(tmp_path, [*numbered(3), {"prompt": "a", "response": None, "rejected": "b"}])
    with pytest.raises(DataError, match="line 4: the response is missing"):
        read_demonstrations(path)


def test_a_file_of_bad_answers_alone_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, [bad(number, is_safe=False) for number in range(4)])
    with pytest.raises(
        DataError, match="nothing to imitate in 4 rows .4 with an answer that is marked as bad, 0 broken"
    ):
        read_demonstrations(path, imitated=True)


def test_no_bad_answer_is_among_the_examples(made: tuple[Path, dict[str, Any]]) -> None:
    folder, config = made
    rows = [*numbered(20, label=True, kind="x"), *(bad(number, label=False, kind="x") for number in range(20))]
    rows += [{**row, "label": True, "kind": "y", "response": "eee."} for row in numbered(30)[20:]]
    written(folder, rows)
    told: list[str] = []
    model = load_reader(folder / "model", max_prompt_tokens=64, max_response_tokens=8, wording=Wording("plain"))
    loaded = with_stage(config, count=20, where={"kind": "x"})
    (stage,) = loaded.policy.warm_start
    shown = load_demonstrations(loaded, folder)[0][0, 0]
    examples = _examples(model, stage, stage.mix[0], shown, np.random.default_rng(0), told.append)
    assert {model.tokenizer.decode(tokens[:-1]) for _, tokens in examples} == {"abc."} and len(examples) == 20
    (note,) = notes_of(loaded, folder)
    assert (
        "20 prompts to imitate an answer to, where {'kind': 'x'} (50 rows: 10 outside where, 0 of" in note
        and "20 with an answer that is marked as bad, 0" in note
    )
    assert told == []


def test_examples_that_cannot_be_imitated_are_counted(made: tuple[Path, dict[str, Any]]) -> None:
    folder, config = made
    rows = [*numbered(20), {"prompt": "abcdefgh" * 9, "response": "abc."}, {"prompt": "ii", "response": "abcdefghij."}]
    written(folder, rows)
    told: list[str] = []
    model = load_reader(folder / "model", max_prompt_tokens=64, max_response_tokens=8, wording=Wording("plain"))
    (stage,) = with_stage(config).policy.warm_start
    short = stage.model_copy(update={"max_target_tokens": 8})
    shown = load_demonstrations(with_stage(config), folder)[0][0, 0]
    assert len(_examples(model, short, stage.mix[0], shown, np.random.default_rng(0), told.append)) == 3
    assert "1 of 22 demonstrations left out: the prompt has more than 64 tokens" in told[0]
    assert "1 of 21 answers (demonstration) left out: no whole first sentence" in told[1] and len(told) == 2


def test_a_few_broken_rows_are_left_out_and_many_stop_the_job(made: tuple[Path, dict[str, Any]]) -> None:
    folder, config = made
    broken: Rows = [{"prompt": 7, "response": "abc."}, {"prompt": "cab", "response": ["abc."]}]
    written(folder, [*numbered(38), *broken])
    (note,) = notes_of(with_stage(config), folder)
    assert (
        "38 prompts" in note
        and "40 rows: 0 outside where, 0 of" in note
        and "0 with an answer that is marked as bad, 2 broken" in note
    )
    written(folder, [*numbered(8), *broken])
    with pytest.raises(DataError, match="line 9: the prompt is int '7'.*2 of 10 rows are broken, 10.0% are allowed"):
        notes_of(with_stage(config), folder)
    allowed = with_stage({**config, "data": {**config["data"], "max_drop": 0.25}})
    assert "2 broken" in notes_of(allowed, folder)[0]


def test_the_dry_run_finds_what_a_warm_start_cannot_have(made: tuple[Path, dict[str, Any]]) -> None:
    folder, config = made
    written(folder, [*numbered(20, kind="x"), *(bad(number, kind="y") for number in range(5))])
    with pytest.raises(DataError, match="no column 'kin'; did you mean 'kind'"):
        notes_of(with_stage(config, where={"kin": "x"}), folder)
    with pytest.raises(
        ConfigError, match="21 examples wanted .demonstration, where .'kind': 'x'.., one a prompt, and 20"
    ):
        notes_of(with_stage(config, count=21, where={"kind": "x"}), folder)
    chosen = with_stage(config, where={"kind": "y"}).model_dump(mode="json", exclude_unset=True)
    done = dualign("train", write_config(folder, chosen), "--dry-run")
    assert done.code == 0 and "5 prompts to imitate an answer to, where {'kind': 'y'}" in done.out, done
    chosen["policy"]["warm_start"][0]["demonstrations"] = "none.jsonl"
    with pytest.raises(MissingError):
        notes_of(load_config(write_config(folder, chosen)), folder)
    dualign("train", write_config(folder, chosen), "--dry-run").refused(66, "none.jsonl")
