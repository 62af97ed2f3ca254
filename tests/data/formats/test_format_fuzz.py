"""Ten thousand random rows: whatever a file holds, it is read, or refused in one line with the row's number."""

import collections
import itertools
import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dualign.data.cells import encodable
from dualign.data.formats.table import describe, preference_file, read_preferences
from dualign.data.preferences import READING_RULES, PreferenceError, PreferenceFile
from dualign.data.table_files import Row
from dualign.data.tables import Table
from dualign.errors import DataError
from preference_files import EXAMPLES, to_values

VALID = [values for values, _ in EXAMPLES.values()] + [to_values(EXAMPLES["trl-chat-implicit"][1])]
NAMES = sorted({name for values in VALID for name in values} | {"split", "", "\ud800"})
ROWS_A_FILE, FILES = 25, 400
LOST = "<lost>"  # the column is taken out of the row
BLANK = ["", " ", "\n\nHuman: a\n\nAssistant: b", "\n\nHuman: b\n\nAssistant: b"]

SCALARS = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.just(10**400) | st.floats(allow_nan=True)
    | st.text(max_size=8) | st.sampled_from(["\ud800", "true", LOST, *BLANK])
)  # fmt: skip
KEYS = st.sampled_from(["role", "content", "text", "name", "value", "history", "columns", "id", "safe"])
VALUES = st.recursive(
    SCALARS | st.sampled_from([value for row in VALID for value in row.values()]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)
CHANGES = st.lists(st.tuples(st.integers(0, 20), VALUES), max_size=1)
BLANKS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(BLANK)), max_size=1)


def check(file: PreferenceFile) -> None:
    """Assert what every later step relies on."""
    assert len(file.rows) + len(file.faults) == file.total
    assert all(READING_RULES[fault.rule] == "drop" for fault in file.faults)
    for row in file.rows:
        assert all(isinstance(answer.text, str) and encodable(answer.text) for answer in row.answers)
        assert encodable(row.prompt.text + "".join(row.prompt.columns) + (row.split or ""))
        assert all(choice is None or 0 <= choice < len(row.answers) for choice in (row.better, row.safer))
    assert "\n" not in describe(file)


def as_texts(row: dict[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}


def fuzzed(valid: dict[str, Any], changes: list[list[tuple[int, Any]]]) -> list[dict[str, Any]]:
    """Return ``ROWS_A_FILE`` rows: each with two of the changes, a change being a column's place and its new value."""
    names = [*valid, "split", "extra"]
    pairs = itertools.islice(itertools.cycle(itertools.product(changes, changes)), ROWS_A_FILE)
    rows = [valid | {names[place % len(names)]: value for place, value in first + second} for first, second in pairs]
    return [{name: value for name, value in row.items() if value != LOST} for row in rows]


def test_ten_thousand_changed_rows_are_read_left_out_or_refused() -> None:
    counted = collections.Counter[str]()

    @settings(max_examples=FILES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(VALID), st.lists(CHANGES | BLANKS, min_size=1, max_size=5), st.booleans())
    def read_one(valid: dict[str, Any], changes: list[list[tuple[int, Any]]], textual: bool) -> None:
        values = fuzzed(valid, changes)
        rows = [Row(line, as_texts(row) if textual else row) for line, row in enumerate(values, start=1)]
        counted["rows"] += len(rows)
        try:
            file = preference_file(Table("f", rows, textual))
        except PreferenceError as error:
            counted["refused"] += len(error.faults)
            assert str(error).startswith("f: line ") and "\n" not in str(error)
            assert all(READING_RULES[fault.rule] == "error" for fault in error.faults)
        else:
            counted["read"] += len(file.rows)
            counted["left out"] += len(file.faults)
            check(file)

    read_one()
    assert counted["rows"] >= 10_000
    assert min(counted.values()) >= 200, counted  # the generator reaches every outcome


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6), min_size=1, max_size=5))
def test_files_of_random_rows_are_read_or_refused(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        check(read_preferences(path))
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)
