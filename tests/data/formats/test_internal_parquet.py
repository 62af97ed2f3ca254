"""Rows of the toolkit in Parquet are read back exactly as they were written, for every format and any row."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dualign.data.formats.labelled import read_internal
from dualign.data.formats.table import read_preferences
from dualign.data.preferences import Answer, PreferenceRow
from dualign.errors import DataError
from dualign.records import Prompt, Turn
from preference_files import EXAMPLES, to_values

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
ANSWERS = st.builds(
    Answer,
    TEXTS,
    safe=st.none() | st.booleans(),
    severity=st.none() | st.integers(0, 3),
    categories=st.frozensets(TEXTS, max_size=2),
    reward=NUMBERS,
    cost=NUMBERS,
)
TURNS = st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), TEXTS)
PROMPTS = st.builds(
    Prompt, TEXTS, st.dictionaries(TEXTS, TEXTS, max_size=2), TEXTS, st.lists(TURNS, max_size=2).map(tuple)
)
CHOICES = st.none() | st.just(0)
ROWS = st.builds(
    PreferenceRow,
    st.integers(1, 2**40),
    PROMPTS,
    st.lists(ANSWERS, min_size=1, max_size=3).map(tuple),
    CHOICES,
    CHOICES,
    st.none() | TEXTS,
)


def _schema() -> Any:
    import pyarrow as pa

    column = pa.struct([("name", pa.string()), ("value", pa.string())])
    turn = pa.struct([("role", pa.string()), ("text", pa.string())])
    prompt = [("text", pa.string()), ("id", pa.string()), ("columns", pa.list_(column)), ("history", pa.list_(turn))]
    answer = [
        ("text", pa.string()),
        ("safe", pa.bool_()),
        ("severity", pa.int64()),
        ("categories", pa.list_(pa.string())),
        ("reward", pa.float64()),
        ("cost", pa.float64()),
        ("desirable", pa.bool_()),
    ]
    return pa.schema(
        [
            ("line", pa.int64()),
            ("prompt", pa.struct(prompt)),
            ("answers", pa.list_(pa.struct(answer))),
            ("better", pa.int64()),
            ("safer", pa.int64()),
            ("split", pa.string()),
        ]
    )


def write_parquet(rows: list[PreferenceRow], path: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([to_values(row) for row in rows], schema=_schema()), path)
    return path


def read_parquet(path: Path) -> tuple[PreferenceRow, ...]:
    return read_preferences(path, format="dualign").rows


def test_every_format_survives_the_round_trip(tmp_path: Path) -> None:
    rows = tuple(replace(row, line=line) for line, (_, row) in enumerate(EXAMPLES.values(), start=1))
    assert read_parquet(write_parquet(list(rows), tmp_path / "f.parquet")) == rows
    file = read_preferences(tmp_path / "f.parquet")
    assert (file.format, file.rows, file.faults) == ("dualign", rows, ())


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, min_size=1, max_size=8))
def test_any_rows_survive_the_round_trip(tmp_path: Path, rows: list[PreferenceRow]) -> None:
    assert read_parquet(write_parquet(rows, tmp_path / "f.parquet")) == tuple(rows)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(row=ROWS)
def test_nested_columns_give_the_row_back(row: PreferenceRow) -> None:
    assert read_internal(to_values(row)) == row


def test_what_cannot_be_read_is_one_clear_line(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["p"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="read as dualign, the file has no column 'line'"):
        read_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match="has no rows"):
        read_parquet(write_parquet([], tmp_path / "none.parquet"))
