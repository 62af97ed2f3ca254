"""``dualign data check``: preference files, looked at as a doctor would, before anything is trained on them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dualign.cli.shared import AsJson, Columns, mapping, printed, shown
from dualign.errors import DataError, MissingError

if TYPE_CHECKING:
    from rich.table import Table

    from dualign.data.checks.check import CheckReport
    from dualign.data.checks.reading import Measure

data = typer.Typer(name="data", help="Preference data: what is wrong with a file, and the file without it.")
COLOURS = {"error": "red", "drop": "yellow", "warn": "cyan"}


@data.callback()
def _group() -> None:
    """Preference data: what is wrong with a file, and the file without it."""


@data.command("check")
def check(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Preference files; each of several is a split.")
    ],
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Folder or id of a tokenizer; without: words x 1.3.")
    ] = None,
    max_length: Annotated[int, typer.Option("--max-length", help="Tokens of prompt and answer together.")] = 512,
    max_prompt: Annotated[int | None, typer.Option("--max-prompt", min=1, help="Tokens of the prompt.")] = None,
    max_answer: Annotated[
        int | None, typer.Option("--max-answer", min=1, help="Tokens of an answer, with the one that ends it.")
    ] = None,
    long_answers: Annotated[
        Literal["drop", "cut"], typer.Option("--long-answers", help="What to do beyond --max-answer.")
    ] = "cut",
    format: Annotated[str | None, typer.Option("--format", help="Name of the format, if it is not recognised.")] = None,
    columns: Columns = None,
    max_drop: Annotated[float, typer.Option("--max-drop", help="Largest share of rows that may be dropped.")] = 0.1,
    contradictory: Annotated[
        Literal["drop", "fix", "error"],
        typer.Option("--contradictory", help="What to do with rows whose safer answer is unsafe, the other one safe."),
    ] = "drop",
    clean: Annotated[
        Path | None,
        typer.Option("--clean", help="Write the kept rows here (of several files: a folder), and a ledger."),
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the verdict alone.")] = False,
) -> None:
    """Say what is wrong with preference files and what they are made of.

    Example: dualign data check pairs.jsonl --max-length 512 --clean kept.jsonl

    Exit code 0 fit for training, 65 errors or too many rows dropped, 66 a file is missing.
    """
    from dualign.data.checks.check import check as check_files
    from dualign.data.checks.check import clean_paths, write_clean
    from dualign.data.checks.reading import WORDS, Limits

    if clean is not None:
        clean_paths(files, clean)  # a name that cannot be used is said before the files are read
    measure = WORDS if tokenizer is None else _measure(tokenizer)
    report = check_files(
        files,
        max_length=Limits(max_length, max_prompt, max_answer, max_answer is not None and long_answers == "drop"),
        measure=measure if max_answer is None else replace(measure, closing=1),
        max_drop=max_drop,
        contradictory=contradictory,
        format=format,
        columns=mapping(columns),
    )
    written = write_clean(report, clean) if clean is not None and report.accepted else []
    if not printed({**report.to_json(), "written": [str(path) for path in written]}, as_json=as_json):
        _show(report, written, refused=clean if clean and not written else None, quiet=quiet)
    if not report.accepted:
        raise typer.Exit(DataError.exit_code)


def _measure(name: str) -> "Measure":
    """Return the measure of the tokenizer of a folder, a hub id, a GGUF file or ``package:NAME``."""
    from dualign.data.checks.reading import of_tokenizer
    from dualign.models.loading import PACKAGE, resolve
    from dualign.scorers.encoding import load_tokenizer

    try:
        converted = name.startswith(PACKAGE) or name.endswith(".gguf")
        return of_tokenizer(load_tokenizer(str(resolve(name).resolve()) if converted else name, Path()), name)
    except MissingError as error:
        raise MissingError(f"--tokenizer {name}: {error}") from error


def _show(report: "CheckReport", written: Sequence[Path], *, refused: Path | None, quiet: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    from dualign.data.checks.check import verdict
    from dualign.data.checks.statistics import summary

    console = Console(highlight=False)
    if not quiet:
        for checked in report.files:
            read = checked.reading
            console.print(shown(f"{read.path}: {read.format or 'not recognised'}, {read.total:,} rows"))
        if report.rules:
            console.print(_rules(report))
        for name, words in summary(report.statistics) if report.statistics["prompts"] else ():
            console.print(Text.assemble((f"{name:14}", "dim"), shown(words)), soft_wrap=True)
    colour = "green" if report.accepted else "red"
    console.print(shown(verdict(report), f"bold {colour}"))
    for path in written:
        console.print(shown(f"written: {path}"))
    if refused is not None:
        console.print(shown(f"nothing is written to {refused}: the data are refused as they stand"))


def _rules(report: "CheckReport") -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from dualign.data.checks.rules import RULES

    table = Table("", "rows", "rule, first lines, what was found and what to do", box=box.SIMPLE, pad_edge=False)
    table.columns[1].justify = "right"
    for one in report.rules:
        lines = ", ".join(map(str, one.rows[:3])) + (", ..." if len(one.rows) > 3 else "")
        where = f" (line{'s' if len(one.rows) > 1 else ''} {lines})" if lines else ""
        fix = shown(RULES[one.rule].fix, "dim")
        said = Text.assemble((one.rule, "bold"), shown(f"{where}: {one.what}."), "\n", fix)
        table.add_row(Text(one.severity, COLOURS[one.severity]), f"{one.count:,}", said)
    return table
