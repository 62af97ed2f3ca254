"""The ``dualign`` entry point in this process: arguments in, exit code and both streams out."""

import contextlib
import io
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from dualign.cli.main import main


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, code: int, *said: str) -> None:
        """Check that the command refused as it should: nothing on stdout, one line on stderr, that exit code."""
        assert (self.code, self.out) == (code, ""), self
        assert self.err.startswith("error: ") and self.err.count("\n") == 1 and len(self.err) < 500, self.err
        for part in said:
            assert part in self.err, self.err


def dualign(*arguments: object) -> Done:
    """Return how ``dualign ARGUMENTS`` ended."""
    out, err, before = io.StringIO(), io.StringIO(), (sys.argv, signal.getsignal(signal.SIGTERM))
    sys.argv = ["dualign", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as ended:
        return Done(int(ended.code or 0), out.getvalue(), err.getvalue())
    finally:
        sys.argv = before[0]
        signal.signal(signal.SIGTERM, before[1])
    raise AssertionError("the command did not end with an exit code")


def tree(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below ``folder`` by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
