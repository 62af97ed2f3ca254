"""``data check`` from the command line: exit codes, one JSON object, a readable table, no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import dualign
from preference_files import ASK, EXAMPLES, KIND, RUDE, write_rows

FIELDS = {"format", "rows", "kept", "dropped", "errors", "rules", "statistics"}


def rows(count: int) -> list[dict[str, str]]:
    return [
        json.loads(json.dumps(EXAMPLES["safety-pairs"][0]).replace(ASK, f"{number}. {ASK}")) for number in range(count)
    ]


def test_good_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", rows(12))
    done = dualign("data", "check", path, "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert set(found) >= FIELDS
    assert (found["format"], found["rows"], found["kept"], found["dropped"], found["errors"]) == (
        "safety-pairs", 12, 12, 0, 0
    )  # fmt: skip
    assert found["rules"] == [] and found["written"] == []
    assert dualign("data", "check", path, "--quiet").out == "Fit for training: 12 of 12 rows kept, 0 dropped (0.0%).\n"


def test_refused_file_prints_its_full_object(tmp_path: Path) -> None:
    good = {"prompt": ASK, "completion": KIND, "label": True}
    path = write_rows(tmp_path / "pairs.jsonl", [*[good] * 12, {**good, "label": 1}, {**good, "label": 0}])
    done = dualign("data", "check", path, "--json", "--clean", tmp_path / "kept.jsonl")
    assert (done.code, done.err) == (65, "")
    found = json.loads(done.out)
    rule, _ = found["rules"]  # the other one: the good rows repeat each other
    assert (rule["rule"], rule["severity"], rule["count"], rule["rows"]) == ("mixed label types", "error", 2, [13, 14])
    assert (found["errors"], found["kept"], found["accepted"], found["written"]) == (2, 12, False, [])
    assert not (tmp_path / "kept.jsonl").exists()
    shown = dualign("data", "check", path, "--clean", tmp_path / "kept.jsonl")
    assert shown.code == 65
    for part in (
        "error",
        "mixed label types",
        "(lines 13, 14)",
        "label is 1; true or false is",
        "Refused: 2 errors",
        "nothing is written",
    ):
        assert part in shown.out, shown.out


def test_damaged_file_is_an_object_too(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl"
    path.write_text(json.dumps(rows(1)[0]) + '\n{"prompt": "a')
    done = dualign("data", "check", path, "--json")
    assert done.code == 65
    (rule,) = json.loads(done.out)["rules"]
    assert (rule["rule"], rule["rows"]) == ("unreadable file", [2])


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    dualign("data", "check", tmp_path / "none.jsonl", "--json").refused(66, "no such file")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--format", "safety-pair"], "did you mean 'safety-pairs'"),
        (["--columns", "safer"], "NAME=COLUMN is needed"),
        (["--columns", "safer=a,safer=b"], "given twice"),
        (["--columns", "safest=safer"], "did you mean 'safer'"),
        (["--contradictory", "fx"], "fx"),
        (["--max-drop", "2"], "from 0 to 1"),
        (["--max-length", "0"], "1 token at least"),
        (["--clean", "kept.csv"], "ends with .jsonl"),
        (["--clean", "."], "is a folder"),
        (["--clean", ""], "is a folder"),
    ],
)
def test_mistyped_options(tmp_path: Path, options: list[str], says: str) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", rows(2))
    dualign("data", "check", path, *options).refused(2, says)


def test_no_file_and_no_command() -> None:
    dualign("data", "check").refused(2, "FILE")
    dualign("data").refused(2, "missing command")


def test_share_of_dropped_rows_decides(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", [*rows(8), {"prompt": ASK, "safer": KIND, "less_safe": ""}])
    done = dualign("data", "check", path)
    assert done.code == 65 and "1 dropped (11.1%), 10.0% are allowed" in " ".join(done.out.split())
    assert dualign("data", "check", path, "--max-drop", "0.2").code == 0


def test_nothing_left_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", [{"prompt": ASK, "safer": KIND, "less_safe": ""}] * 3)
    done = dualign("data", "check", path, "--max-drop", "1", "--quiet", "--clean", tmp_path / "kept.jsonl")
    assert done.code == 65 and "Refused: nothing is left" in done.out
    assert not (tmp_path / "kept.jsonl").exists()


def test_a_format_that_is_refused_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "prompts.jsonl", [{"prompt": ASK, "category": "tools"}])
    done = dualign("data", "check", path)
    assert done.code == 65 and "beavertails-evaluation, 1 rows" in " ".join(done.out.split())
    assert "not recognised" not in done.out


def test_columns_format_and_clean(tmp_path: Path) -> None:
    named = [{"question": row["prompt"], "good": row["safer"], "bad": row["less_safe"]} for row in rows(12)]
    path = write_rows(tmp_path / "pairs.jsonl", [*named, named[3] | {"bad": " "}])
    options = ("--columns", "prompt=question,safer=good,less_safe=bad", "--format", "safety-pairs")
    done = dualign("data", "check", path, *options, "--clean", tmp_path / "new" / "kept.jsonl", "--json")
    assert done.code == 0, done
    written = [Path(name) for name in json.loads(done.out)["written"]]
    assert [name.name for name in written] == ["kept.jsonl", "kept.dropped.jsonl"]
    assert json.loads(dualign("data", "check", written[0], "--json").out)["format"] == "safety-pairs"
    (entry,) = map(json.loads, written[1].read_text().splitlines())
    assert (entry["line"], entry["rule"]) == (13, "empty response")


def test_two_files_that_share_a_prompt(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", rows(5))
    test = write_rows(tmp_path / "test.jsonl", rows(1))
    done = dualign("data", "check", train, test, "--json")
    assert done.code == 65
    leak = next(rule for rule in json.loads(done.out)["rules"] if rule["rule"] == "prompt in two splits")
    assert [entry["rows"] for entry in leak["rows_of_files"]] == [[1], [1]]


def test_tokenizer_of_a_folder(tmp_path: Path) -> None:
    from tiny_tokenizers import bpe_tokenizer

    bpe_tokenizer(adds_bos=True).save_pretrained(tmp_path / "tokenizer")
    path = write_rows(tmp_path / "pairs.jsonl", [*rows(12), {"prompt": "<s>Hm", "safer": KIND, "less_safe": RUDE}])
    done = dualign("data", "check", path, "--tokenizer", tmp_path / "tokenizer", "--json")
    assert done.code == 65, done
    found = json.loads(done.out)
    assert {rule["rule"]: rule["rows"] for rule in found["rules"] if rule["severity"] == "error"} == {
        "double BOS": [13]
    }
    assert found["statistics"]["tokens"]["measure"].endswith("tokenizer")
    dualign("data", "check", path, "--tokenizer", tmp_path / "none").refused(66, "--tokenizer")


def test_markup_in_data_is_text(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", [*rows(12), {"prompt": "Hm", "safer": "[/INST] a", "less_safe": RUDE}])
    done = dualign("data", "check", path)
    assert done.code == 0 and "[/INST]" in done.out


def test_no_torch_without_a_tokenizer(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", rows(3))
    program = (
        "import sys\nfrom dualign.cli.main import app\n"
        f"app(['data', 'check', {str(path)!r}, '--json'], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'matplotlib', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_answers_have_a_limit_of_their_own(tmp_path: Path) -> None:
    long = {"prompt": ASK, "safer": KIND, "less_safe": "no " * 20}
    path = write_rows(tmp_path / "pairs.jsonl", [*rows(6), long, {**long, "prompt": "Why so?"}])
    cut = dualign("data", "check", path, "--max-answer", 26)
    assert (cut.code, "25.0% of rows at 26 tokens an answer" in cut.out) == (0, True), cut.out
    left = dualign("data", "check", path, "--max-answer", 26, "--long-answers", "drop")
    assert left.code == 0
    assert "2 dropped (25.0%), 2 of them for an answer that is too long" in " ".join(left.out.split())
    assert dualign("data", "check", path, "--max-answer", 27, "--long-answers", "drop", "--quiet").out.startswith(
        "Fit for training: 8 of 8"
    )
    assert "prompt too long" in dualign("data", "check", path, "--max-prompt", 3).out
