"""Lines of progress on stderr, each with the time since the start."""

import sys
import time


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
            print(f"[{minutes:3d}:{seconds:02d}] {message}", file=sys.stderr, flush=True)
