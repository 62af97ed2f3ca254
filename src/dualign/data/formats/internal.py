"""The toolkit's own rows, in which every record of every format fits without loss."""

from collections.abc import Mapping
from typing import Any

from dualign.data.formats.cells import Values, categories, flag, position, score, severity, text
from dualign.data.formats.faults import RowError
from dualign.data.formats.rows import Format
from dualign.data.formats.turns import turns
from dualign.data.preferences import Answer, PreferenceRow
from dualign.records import Prompt

NEEDS = ("line", "prompt", "answers", "better", "safer", "split")
LINES = 2**62  # no file has more; what is stored fits the column's 64 bits


def to_values(row: PreferenceRow) -> dict[str, Any]:
    """Return the row as nested columns: lists and objects of texts and numbers."""
    return {
        "line": row.line,
        "prompt": {
            "text": row.prompt.text,
            "id": row.prompt.id,
            "columns": [{"name": name, "value": value} for name, value in row.prompt.columns.items()],
            "history": [{"role": turn.role, "text": turn.text} for turn in row.prompt.history],
        },
        "answers": [
            {
                "text": answer.text,
                "safe": answer.safe,
                "severity": answer.severity,
                "categories": sorted(answer.categories),
                "reward": answer.reward,
                "cost": answer.cost,
                "desirable": answer.desirable,
            }
            for answer in row.answers
        ],
        "better": row.better,
        "safer": row.safer,
        "split": row.split,
    }


def read_row(values: Values, line: int) -> PreferenceRow:
    """Return the row that ``to_values`` took apart; its own line is kept."""
    answers = tuple(_answer(value) for value in _objects(values, "answers"))
    if not answers:
        raise RowError("not a text", "answers is a list of 0; one answer at least is needed")
    own = values.get("line")
    return PreferenceRow(
        own if isinstance(own, int) and not isinstance(own, bool) and 0 < own < LINES else line,
        _prompt(values),
        answers,
        better=_optional_position(values, "better", len(answers)),
        safer=_optional_position(values, "safer", len(answers)),
        split=None if values.get("split") is None else text(values, "split"),
    )


def _optional_position(values: Values, name: str, count: int) -> int | None:
    return None if values.get(name) is None else position(values, name, count=count)


def _prompt(values: Values) -> Prompt:
    parts = values.get("prompt")
    if not isinstance(parts, Mapping):
        raise RowError("not a text", "prompt is no object; text, id, columns and history are needed")
    columns = {text(pair, "name"): text(pair, "value") for pair in _objects(parts, "columns")}
    history = tuple(turns(parts, "history")) if parts.get("history") else ()
    return Prompt(text(parts, "text"), columns, text(parts, "id"), history)


def _answer(value: Values) -> Answer:
    return Answer(
        text(value, "text"),
        safe=None if value.get("safe") is None else flag(value, "safe"),
        severity=severity(value, "severity"),
        categories=categories(value, "categories"),
        reward=None if value.get("reward") is None else score(value, "reward"),
        cost=None if value.get("cost") is None else score(value, "cost"),
        desirable=None if value.get("desirable") is None else flag(value, "desirable"),
    )


def _objects(values: Values, name: str) -> list[Values]:
    value = values.get(name)
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise RowError("not a text", f"{name} is no list of objects")
    return value


INTERNAL = Format("dualign", "rows of this toolkit", NEEDS, read_row, systems=False)
