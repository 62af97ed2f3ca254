"""The page on preference files names every format with its columns, and every rule of the reader."""

import re
from pathlib import Path

from dualign.data.formats.table import FORMATS
from dualign.data.preferences import READING_RULES

PAGE = (Path(__file__).parents[3] / "docs" / "preference-files.md").read_text()
ROWS = dict(re.findall(r"^\| `([^`]+)` \| (.+?) \|", PAGE, re.MULTILINE))


def spelt(cell: str) -> set[str]:
    """Return the column names of a cell, ``a_{0,1}`` written out."""
    names = set()
    for name in re.findall(r"`([^`]+)`", cell):
        first, *numbers = re.split(r"\{(\d),(\d)\}", name)
        names |= {first + number + numbers[2] for number in numbers[:2]} if numbers else {name}
    return names


def test_every_format_and_its_columns_are_on_the_page() -> None:
    assert set(ROWS) >= set(FORMATS) | set(READING_RULES)
    for name, known in FORMATS.items():
        named = spelt(ROWS[name])
        needed = set(known.needs)
        assert needed <= named if name != "pku-saferlhf" else needed == spelt(ROWS["pku-saferlhf-v0"]), name
        assert all(known.reads(column) for column in named if "NAME" not in column and column != "text"), name


def test_every_rule_stands_under_what_it_leads_to() -> None:
    refusing, leaving_out = PAGE.split("A row is left out")
    for rule, severity in READING_RULES.items():
        assert f"| `{rule}` |" in (refusing if severity == "error" else leaving_out)
