"""Cleaned files: recognised without options, nothing left to drop, every lost row in the ledger."""

import csv
import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from dualign.data.checks.check import check, clean_paths, write_clean
from dualign.data.formats.table import read_preferences
from dualign.errors import DataError, UsageError
from preference_files import ASK, EXAMPLES, KIND, RUDE, write_rows

V0 = EXAMPLES["pku-saferlhf-v0"][0]


def numbered(name: str, count: int) -> list[dict[str, Any]]:
    """Return rows of a format that break no rule but that their prompts resemble each other."""
    return [json.loads(json.dumps(EXAMPLES[name][0]).replace(ASK, f"{number}. {ASK}")) for number in range(count)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", EXAMPLES)
def test_kept_rows_are_read_as_they_were(tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path / "f.jsonl", numbered(name, 5))
    report = check([path])
    clean, ledger = write_clean(report, tmp_path / "kept.jsonl")
    assert (ledger, ledger.read_text()) == (tmp_path / "kept.dropped.jsonl", "")
    before, after = read_preferences(path), read_preferences(clean)
    assert (after.format, after.rows) == (name, before.rows)
    assert lines(clean) == numbered(name, 5)


def test_dropped_rows_are_in_the_ledger_and_nowhere_else(tmp_path: Path) -> None:
    rows = numbered("safety-pairs", 20)
    swapped = rows[3] | {"safer": rows[3]["less_safe"], "less_safe": rows[3]["safer"]}
    path = write_rows(tmp_path / "f.jsonl", [*rows, swapped, rows[0] | {"safer": " "}])
    clean, ledger = write_clean(check([path], max_drop=0.2), tmp_path / "kept.jsonl")
    assert lines(clean) == [row for number, row in enumerate(rows) if number != 3]
    assert [(entry["line"], entry["rule"], entry["action"]) for entry in lines(ledger)] == [
        (4, "pair labelled both ways", "dropped"),
        (21, "pair labelled both ways", "dropped"),
        (22, "empty response", "dropped"),
    ]
    again = check([clean])
    assert (again.dropped, again.kept, again.rows) == (0, 19, 19)


def test_a_fixed_row_has_the_other_winner_and_is_in_the_ledger(tmp_path: Path) -> None:
    rows = numbered("pku-saferlhf", 3)
    rows[1] |= {"safer_response_id": 0}
    report = check([write_rows(tmp_path / "f.jsonl", rows)], contradictory="fix")
    clean, ledger = write_clean(report, tmp_path / "kept.jsonl")
    assert lines(clean) == numbered("pku-saferlhf", 3)
    assert [(entry["line"], entry["action"]) for entry in lines(ledger)] == [(2, "fixed")]


def test_ids_that_count_from_one_stay_as_they_are(tmp_path: Path) -> None:
    rows = numbered("saferlhf-v", 2)
    clean, _ = write_clean(check([write_rows(tmp_path / "f.jsonl", rows)], contradictory="fix"), tmp_path / "k.jsonl")
    assert [row["safer_response_id"] for row in lines(clean)] == [2, 2]


def test_mapped_columns_of_a_table_need_no_option_afterwards(tmp_path: Path) -> None:
    path, columns = tmp_path / "f.csv", {"safer_response_id": "harmless", "prompt": "question"}
    rows = numbered("pku-saferlhf-v0", 3)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*(columns.get(name, name) for name in V0), "prompt", "note"])
        writer.writeheader()
        for row in rows:
            cells = {columns.get(name, name): value for name, value in row.items()}
            writer.writerow(cells | {"prompt": "old", "note": "1"})
    clean, _ = write_clean(check([path], columns=columns), tmp_path / "kept.jsonl")
    assert lines(clean) == [row | {"note": "1"} for row in rows]
    assert read_preferences(clean).format == "pku-saferlhf-v0"


def test_what_json_cannot_hold_is_null(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    row = EXAMPLES["saferlhf-v"][0] | {"image": {"bytes": b"\x89PNG", "path": None}, "weight": float("nan")}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "f.parquet")
    clean, _ = write_clean(check([tmp_path / "f.parquet"]), tmp_path / "kept.jsonl")
    assert lines(clean)[0]["image"] == {"bytes": None, "path": None} and lines(clean)[0]["weight"] is None


def test_several_files_go_into_a_folder(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "train.jsonl", numbered("safety-pairs", 2))
    second = write_rows(tmp_path / "test.jsonl", [{"prompt": "Why is that?", "safer": KIND, "less_safe": RUDE}])
    written = write_clean(check([first, second]), tmp_path / "kept")
    assert [path.relative_to(tmp_path / "kept").name for path in written] == [
        "train.jsonl", "train.dropped.jsonl", "test.jsonl", "test.dropped.jsonl"
    ]  # fmt: skip
    assert lines(written[0]) == lines(first)
    (tmp_path / "other").mkdir()
    same = write_rows(
        tmp_path / "other" / "train.jsonl", [{"prompt": "Why is that?", "safer": KIND, "less_safe": RUDE}]
    )
    with pytest.raises(UsageError, match="both be written"):
        write_clean(check([first, same]), tmp_path / "again")


def test_dots_that_are_no_ending_stay_in_the_name(tmp_path: Path) -> None:
    names = ["pku.v1.train.jsonl", "pku.v1.test.json.gz", "v2.0", "harmless.v3"]
    assert [path.name for path in clean_paths(names, tmp_path / "kept")] == [
        "pku.v1.train.jsonl", "pku.v1.test.jsonl", "v2.0.jsonl", "harmless.v3.jsonl"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "out", "says"),
    [
        (["a.jsonl"], "kept.csv", "ends with .jsonl"),
        (["a.jsonl"], "kept.parquet", "ends with .jsonl"),
        (["a.jsonl"], "kept", "ends with .jsonl"),
        (["a.jsonl"], "", "is a folder; of one file name the new file, such as kept.jsonl"),
        (["a.jsonl"], ".", "is a folder"),
        (["a.jsonl"], "a" * 300 + ".jsonl", "cannot be written"),
        (["a.jsonl", "b.jsonl"], "there.txt", "is a file; of several files name a folder"),
        (["a.v1.jsonl", "a.v1.csv.gz"], "kept", "both be written to kept/a.v1.jsonl"),
        (["a.jsonl", "a.dropped.jsonl"], "kept", "both be written to kept/a.dropped.jsonl"),
    ],
)
def test_names_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], out: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.txt").touch()
    with pytest.raises(UsageError, match=says) as caught:
        clean_paths(files, Path(out))
    assert "\n" not in str(caught.value)


def test_messages_of_a_table_are_messages_afterwards(tmp_path: Path) -> None:
    rows = numbered("trl-chat-explicit", 3)
    with (tmp_path / "f.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({name: json.dumps(value) for name, value in row.items()} for row in rows)
    clean, _ = write_clean(check([tmp_path / "f.csv"]), tmp_path / "kept.jsonl")
    assert lines(clean) == rows


def test_nothing_is_written_over_or_from_refused_data(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "f.jsonl", numbered("safety-pairs", 2))
    with pytest.raises(UsageError, match="is a file that is checked"):
        write_clean(check([path]), path)
    write_rows(path, [*numbered("safety-pairs", 2), {"prompt": ASK, "safer": None, "less_safe": RUDE}])
    with pytest.raises(DataError, match="refused"):
        write_clean(check([path]), tmp_path / "kept.jsonl")
    assert not (tmp_path / "kept.jsonl").exists()


def test_decimals_and_times_of_parquet_are_kept(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    scores = {f"{name}_{k}": Decimal(f"{k}.25") for name in ("reward", "cost") for k in (0, 1)}
    row = {"prompt": ASK, "response_0": KIND, "response_1": RUDE, **scores, "when": datetime(2026, 1, 31, 12)}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "f.parquet")
    clean, _ = write_clean(check([tmp_path / "f.parquet"]), tmp_path / "kept.jsonl")
    (read,) = read_preferences(clean).rows
    assert [(answer.reward, answer.cost) for answer in read.answers] == [(0.25, 0.25), (1.25, 1.25)]
    assert lines(clean)[0]["when"] == "2026-01-31T12:00:00"
