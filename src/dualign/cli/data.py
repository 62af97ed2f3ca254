"""``dualign data check``: preference files, looked at as a doctor would, before anything is trained on them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dualign.errors import DataError, MissingError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from dualign.data.checks.check import CheckReport
    from dualign.data.checks.measure import Measure

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
    format: Annotated[str | None, typer.Option("--format", help="Name of the format, if it is not recognised.")] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--columns", help="NAME=COLUMN,...: what your columns are called.")
    ] = None,
    max_drop: Annotated[float, typer.Option("--max-drop", help="Largest share of rows that may be dropped.")] = 0.1,
    contradictory: Annotated[
        Literal["drop", "fix", "error"],
        typer.Option("--contradictory", help="What to do with rows whose safer answer is unsafe, the other one safe."),
    ] = "drop",
    clean: Annotated[
        Path | None,
        typer.Option("--clean", help="Write the kept rows here (of several files: a folder), and a ledger."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the verdict alone.")] = False,
) -> None:
    """Say what is wrong with preference files and what they are made of.

    Example: dualign data check pairs.jsonl --max-length 512 --clean kept.jsonl

    Exit code 0 fit for training, 65 errors or too many rows dropped, 66 a file is missing.
    """
    from dualign.data.checks.check import check as check_files
    from dualign.data.checks.clean import write_clean
    from dualign.data.checks.measure import WORDS

    report = check_files(
        files,
        max_length=max_length,
        measure=WORDS if tokenizer is None else _measure(tokenizer),
        max_drop=max_drop,
        contradictory=contradictory,
        format=format,
        columns=_mapping(columns or []),
    )
    written = write_clean(report, clean) if clean is not None and report.accepted else []
    if as_json:
        print(json.dumps({**report.to_json(), "written": [str(path) for path in written]}, allow_nan=False))
    else:
        _show(report, written, refused=clean if clean and not written else None, quiet=quiet)
    if not report.accepted:
        raise typer.Exit(DataError.exit_code)


def _mapping(given: Sequence[str]) -> dict[str, str]:
    """Return column of the file by the name it is read as."""
    columns: dict[str, str] = {}
    for pair in (pair for text in given for pair in text.split(",")):
        name, equals, column = (part.strip() for part in pair.partition("="))
        if not (name and equals and column):
            raise UsageError(f"--columns {pair!r}: NAME=COLUMN is needed, such as chosen=good_answer")
        if name in columns:
            raise UsageError(f"--columns: {name!r} is given twice; give it once")
        columns[name] = column
    return columns


def _measure(name: str) -> "Measure":
    """Return the measure of the tokenizer of a folder, a hub id, a GGUF file or ``package:NAME``."""
    from dualign.data.checks.measure import of_tokenizer
    from dualign.engine.loading import PACKAGE, resolve
    from dualign.scorers.encoding import load_tokenizer

    try:
        converted = name.startswith(PACKAGE) or name.endswith(".gguf")
        return of_tokenizer(load_tokenizer(str(resolve(name).resolve()) if converted else name, Path()), name)
    except MissingError as error:
        raise MissingError(f"--tokenizer {name}: {error}") from error


def _show(report: "CheckReport", written: Sequence[Path], *, refused: Path | None, quiet: bool) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    if not quiet:
        for checked in report.files:
            read = checked.reading
            console.print(f"{escape(read.path)}: {read.format or 'not recognised'}, {read.total:,} rows")
        if report.rules:
            console.print(_rules(report))
        for name, words in summary(report.statistics) if report.statistics["prompts"] else ():
            console.print(f"[dim]{name:14}[/]{escape(words)}", soft_wrap=True)
    colour = "green" if report.accepted else "red"
    console.print(f"[bold {colour}]{verdict(report)}[/]")
    for path in written:
        console.print(f"written: {escape(str(path))}")
    if refused is not None:
        console.print(f"nothing is written to {escape(str(refused))}: the data are refused as they stand")


def _rules(report: "CheckReport") -> "Table":
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from dualign.data.checks.rules import RULES

    table = Table("", "rows", "rule, first lines, what was found and what to do", box=box.SIMPLE, pad_edge=False)
    table.columns[1].justify = "right"
    for one in report.rules:
        lines = ", ".join(map(str, one.rows[:3])) + (", ..." if len(one.rows) > 3 else "")
        where = f" (line{'s' if len(one.rows) > 1 else ''} {lines})" if lines else ""
        said = f"[bold]{one.rule}[/]{where}: {escape(one.what)}.\n[dim]{escape(RULES[one.rule].fix)}[/]"
        table.add_row(f"[{COLOURS[one.severity]}]{one.severity}[/]", f"{one.count:,}", said)
    return table


def verdict(report: "CheckReport") -> str:
    """Return one sentence: fit for training or not, and how many rows are left."""
    share = report.dropped / report.rows if report.rows else 0.0
    counts = f"{report.kept:,} of {report.rows:,} rows kept, {report.dropped:,} dropped ({share:.1%})"
    if report.errors:
        return f"Refused: {report.errors:,} error{'s' if report.errors > 1 else ''}; {counts}."
    if not report.accepted:
        return f"Refused: {counts}, {report.max_drop:.1%} are allowed (--max-drop)."
    return f"Fit for training: {counts}."


def summary(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the statistics as (name, words); what the rows do not say is left out."""
    labels, tokens, same = figures["labels"], figures["tokens"], figures["duplicates"]
    near, splits, harm = figures["near_duplicates"], figures["splits"], figures["categories"]
    clusters = f"{near['prompts']:,} are near-duplicates ({near['clusters']:,} clusters)"
    disputed = (
        f"{same['replies_labelled_both_ways']:,} replies by winner, {same['replies_flagged_both_ways']:,} by flag"
    )
    lines = [
        ("prompts", f"{figures['prompts']:,}; {clusters}"),
        ("rows", f"{same['distinct_rows']:,} distinct, {same['repeated_rows']:,} repeated"),
        ("both ways", f"{same['rows_labelled_both_ways']:,} rows; {disputed}"),
    ]
    if labels["flagged_rows"]:
        shares = ", ".join(f"{kind} {labels[kind]:.1%}" for kind in ("safe", "mixed", "unsafe"))
        contrary = f"{labels['contradictory']:,} contradictory"
        lines.append(("flags", f"{shares} of {labels['flagged_rows']:,} rows; {contrary}"))
    if labels["better_and_safer_agree"] is not None:
        share = f"{labels['better_and_safer_agree']:.1%}"
        lines.append(("winners", f"the more helpful answer is the safer one in {share} of rows"))
    if harm:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in list(harm.items())[:5])
        lines.append(("harm", kinds + (", ..." if len(harm) > 5 else "")))
    if tokens["prompt"]:
        lines += [(f"{side} tokens", _range(tokens[side])) for side in ("prompt", "answer")]
        cut = f"{tokens['truncated_share']:.1%} of rows at {tokens['max_length']:,} tokens"
        lines.append(("cut off", f"{cut}, counted as {tokens['measure']}"))
    if splits["rows"]:
        sides = ", ".join(f"{name} {count:,}" for name, count in splits["rows"].items())
        lines.append(("splits", f"{sides} rows; {splits['leaking_prompts']:,} prompts in two of them"))
    return lines


def _range(quantiles: Mapping[str, float]) -> str:
    return f"median {quantiles['median']:,.0f}, 95 % {quantiles['q95']:,.0f}, at most {quantiles['max']:,.0f}"
