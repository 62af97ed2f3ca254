"""The ``dualign`` command: registers the commands, turns mistakes into one line and a documented exit code."""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import typer

from dualign.errors import DualignError, UsageError, inert

ClickError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""What typer raises on a mistyped command line: click's own class, or that of the copy inside newer typers."""

app = typer.Typer(
    name="dualign",
    help="Constrained preference optimisation: requirements in, certificate out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _register() -> None:
    """Add every command; their modules import nothing heavy."""
    from dualign.cli import certify, data, methods, plan, sample, scorer, solve, train

    for name, command in (
        ("demo", train.demo),
        ("init", train.init),
        ("train", train.train),
        ("plan", plan.plan),
        ("solve", solve.solve),
        ("compare", train.compare),
        ("certify", certify.certify),
        ("methods", methods.methods),
        ("sample", sample.sample),
        ("score", sample.score),
        ("sft", train.sft),
        ("report", train.report),
    ):
        app.command(name)(command)
    app.add_typer(data.data)
    app.add_typer(scorer.app)


def _terminate(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """End as on an interrupt: what is finished is on disk already, and the lock is given back."""
    raise SystemExit(128 + signum)


def _check_typed(arguments: Sequence[str]) -> None:
    """Refuse what was typed and is no text: bytes that are not UTF-8 and name no file reach neither claim nor hash.

    Raises:
        UsageError: an argument is none.
    """
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument) and not os.path.lexists(argument):
            raise UsageError(f"{argument[:60]}: is not UTF-8; type it in UTF-8")


def main() -> None:
    """Run the command line and exit with the code of ``dualign.errors``."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _check_typed(sys.argv[1:])
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except DualignError as error:
        print(f"error: {inert(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except ClickError as error:
        message = inert(" ".join(error.format_message().split()))
        if message:
            print(f"error: {message[0].lower()}{message[1:]}", file=sys.stderr)
        sys.exit(UsageError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Python flushes stdout once more on its way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


_register()

if __name__ == "__main__":
    main()
