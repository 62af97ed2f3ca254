"""What a terminal is shown: lines of progress on stderr, and texts of others in tables and panels."""

import sys
import time
from typing import TYPE_CHECKING

from dualign.errors import inert

if TYPE_CHECKING:
    from rich.text import Text


def shown(text: object, style: str = "") -> "Text":
    """Return a text of others for rich: without markup or emoji codes in it, and nothing that a terminal acts upon."""
    from rich.text import Text

    return Text(inert(text), style=style)


class Progress:
    """Tells what is going on; says nothing when quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        """Start the clock."""
        self._quiet = quiet
        self._started = time.monotonic()

    def tell(self, message: str) -> None:
        """Print one line: minutes, seconds, message."""
        if not self._quiet:
            minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
            print(f"[{minutes:3d}:{seconds:02d}] {inert(message)}", file=sys.stderr, flush=True)
