"""Plain text: one prompt a line."""

from pathlib import Path

from dualign.data.sources.rows import Row, read_text

COLUMN = "prompt"


def read_lines(path: Path) -> list[Row]:
    """Return one row for each line that is not blank, with the line as its prompt."""
    return [
        Row(number, {COLUMN: line.strip()})
        for number, line in enumerate(read_text(path).split("\n"), start=1)
        if line.strip()
    ]
