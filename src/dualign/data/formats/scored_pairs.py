"""Scored pairs: two answers with a reward and a cost each, and what scored them."""

import re
from collections.abc import Sequence

from dualign.data.formats.cells import Values, given, score, text
from dualign.data.formats.faults import RowError
from dualign.data.formats.rows import Format, made
from dualign.data.preferences import Answer, Fault, PreferenceRow
from dualign.records import Prompt

TEXTS = ("prompt", "response_0", "response_1")
REWARDS = ("reward_0", "reward_1")
COST = re.compile(r"cost(_\w+?)?_[01]")


def recognise(rows: Sequence[Values]) -> bool:
    """Return whether any row has a cost."""
    return any(COST.fullmatch(name) for row in rows for name in row)


def _cost_stem(values: Values) -> str:
    """Return what the row's cost columns are called before their number.

    Raises:
        RowError: there are none, or several costs of which none is called ``cost``.
    """
    stems = sorted({name[:-2] for name in values if COST.fullmatch(name)})
    if len(stems) == 1 or "cost" in stems:
        return "cost" if "cost" in stems else stems[0]
    if not stems:
        raise RowError("missing column", "there is no cost; cost_0 and cost_1 are needed")
    mend = f"cost_0={stems[0]}_0,cost_1={stems[0]}_1"
    raise RowError("missing column", f"there are several costs ({', '.join(stems)}); name one by columns: {mend}")


def _cost(values: Values, name: str) -> float:
    """Return the one cost of an answer.

    Raises:
        RowError: no finite number, or a list of several: a row has one cost here, and which one is the user's to say.
    """
    value = values.get(name)
    if isinstance(value, list) and len(value) > 1:
        mend = "several costs are not read from a list: give each its columns, cost_NAME_0 and cost_NAME_1"
        raise RowError("score not a number", f"{name} is {given(values, name)}; one finite number is needed ({mend})")
    return score(values, name)


def read_row(values: Values, line: int) -> PreferenceRow | Fault:
    """Return the row of one scored pair; which answer is better or safer is left to the scores."""
    stem = _cost_stem(values)
    answers = [
        Answer(
            text(values, f"response_{number}"),
            reward=score(values, f"reward_{number}"),
            cost=_cost(values, f"{stem}_{number}"),
        )
        for number in (0, 1)
    ]
    return made(line, Prompt(text(values, "prompt")), answers)


SCORED_PAIRS = Format(
    "scored-pairs",
    "pairs with rewards and costs",
    (*TEXTS, *REWARDS),
    read_row,
    recognise,
    more=COST,
    texts=TEXTS,
)
