"""Random rows: no exception, nothing but known rules, and statistics that are finite or none."""

import json
import math
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dualign.data.checks.check import check_rows
from dualign.data.checks.reading import Limits, Measure
from dualign.data.checks.rules import RULES
from dualign.data.checks.statistics import statistics
from dualign.data.preferences import Answer, PreferenceRow
from dualign.records import Prompt, Turn

SAID = ["", " ", "a", "A ", "b", "<s>", "System: x", "word " * 30, "wort " * 30, "\u2028", "你好"]
TEXTS = st.sampled_from(SAID) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBERS = st.none() | st.floats() | st.sampled_from([0.0, 1.0, -1.0])
ANSWERS = st.builds(
    Answer,
    TEXTS,
    safe=st.none() | st.booleans(),
    severity=st.none() | st.integers(0, 3),
    categories=st.frozensets(st.sampled_from(["Violence", "Drugs", ""]), max_size=2),
    reward=NUMBERS,
    cost=NUMBERS,
)
COLUMNS = st.dictionaries(
    st.sampled_from(["scorer", "revision", "cost_0", "cost", "is_response_0_safe", "other"]),
    st.sampled_from(["", "true", "1e999", "nan", "x", "2"]),
    max_size=3,
)
HISTORY = st.lists(st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), TEXTS), max_size=3).map(tuple)
PROMPTS = st.builds(Prompt, TEXTS, COLUMNS, history=HISTORY)
CHOICES = st.none() | st.integers(-1, 3)
ROWS = st.lists(
    st.builds(
        PreferenceRow,
        st.just(0),
        PROMPTS,
        st.lists(ANSWERS, max_size=3).map(tuple),
        CHOICES,
        CHOICES,
        st.none() | st.sampled_from(["train", "test"]),
    ),
    max_size=12,
)
CONTEXTS = st.tuples(st.integers(1, 40), st.sampled_from([Measure("letters", list), Measure("half", str.split, 0.5)]))


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for inner in value.values() for number in numbers(inner)]
    return [value] if isinstance(value, int | float) else []


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(ROWS, CONTEXTS)
def test_random_rows(rows: list[PreferenceRow], context: tuple[int, Measure]) -> None:
    rows = [replace(row, line=number) for number, row in enumerate(rows)]
    faults, known, sound = check_rows(rows, limits=Limits(context[0]), measure=context[1])
    assert {fault.rule for fault in faults} <= set(RULES)
    assert {fault.line for fault in faults} <= {row.line for row in rows}
    figures = statistics(sound, known)
    assert all(math.isfinite(number) for number in numbers(figures))
    json.dumps(figures, allow_nan=False)
