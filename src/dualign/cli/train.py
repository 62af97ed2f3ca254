"""The commands of a whole job: ``init``, ``train``, ``demo``, ``sft``, ``compare``, ``report``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import dualign
from dualign.cli.shared import AsJson, Progress, printed
from dualign.errors import ConfigError, InfeasibleError, UsageError, inert, inert_lines

if TYPE_CHECKING:
    from dualign.config import Config


KINDS = ("demo", "hf", "pairs", "seven-b")


def init(
    kind: Annotated[str, typer.Option(help=f"One of {', '.join(KINDS)}.")] = "demo",
) -> None:
    """Print a commented config that runs.

    Example: dualign init --kind hf > job.yaml
    """
    if kind not in KINDS:
        raise UsageError(f"--kind: unknown {kind!r}; known: {', '.join(KINDS)}")
    typer.echo(files("dualign.cli").joinpath("configs", f"{kind}.yaml").read_text(encoding="utf-8"), nl=False)


def train(
    config: Annotated[Path, typer.Argument(help="YAML config; `dualign init` prints one.")],
    out: Annotated[Path | None, typer.Option(help="Run directory; default runs/<run.name>.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, such as training.beta=0.3.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything that is cheap, then stop.")] = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option(help="No progress on stderr.")] = False,
) -> None:
    """Train a policy that is as helpful as its limits allow, and certify it.

    Example: dualign train examples/smollm2-harm.yaml --set data.prompts=FOLDER
    """
    from dualign.config import blamed, load_config
    from dualign.job.checks import check

    loaded = load_config(config, override)
    try:
        check(loaded)
    except ConfigError as error:
        raise blamed(error, override or []) from None
    run = out if out is not None else Path("runs") / loaded.run.name
    progress = Progress(quiet=quiet)
    from dualign.job.entry import check_only, run_config

    if dry_run:
        finish(check_only(loaded, config.parent), 0, as_json=as_json)
    try:
        result, code = run_config(loaded, config.parent, run, progress.tell)
    except InfeasibleError as error:
        if as_json:
            show(_infeasible(loaded, error), as_json=True)
        raise
    finish(result, code, as_json=as_json, run=run)


def _infeasible(config: Config, error: InfeasibleError) -> dict[str, Any]:
    """Return the ``train`` object of a job that ended before any training: no policy can meet its limits."""
    return {
        "run": config.run.name,
        "verdict": "INFEASIBLE",
        "reason": str(error),
        "limits": {constraint.name: constraint.limit for constraint in config.constraints},
        "selected": None,
        "iterates": [],
        "seconds": {},
        "report": None,
    }


def finish(result: dict[str, Any], code: int, *, as_json: bool, run: Path | None = None) -> None:
    """Print the result, as JSON or as text, and exit with ``code``."""
    show(result, as_json=as_json, run=run)
    raise typer.Exit(code)


def show(result: dict[str, Any], *, as_json: bool, run: Path | None = None) -> None:
    """Print the result: as JSON, else what a person wants to know of ``run``, else line by line."""
    from dualign.hashing import plain

    if printed(plain(result), as_json=as_json):
        return
    if run is not None:
        from dualign.report.build import summary_text

        typer.echo(summary_text(run))
    else:
        typer.echo("\n".join(inert(f"{key}: {value}", most=100_000) for key, value in result.items()))


def demo(
    out: Annotated[Path, typer.Option(help="Run directory.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of every stage.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A smaller job: coarser figures, under a minute.")] = False,
    full: Annotated[
        bool,
        typer.Option("--full", help="Add the other arms: hard labels, half and twice the multiplier, exact scores."),
    ] = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Find the multiplier, train, meet the limit, certify it, and compare with the exact optimum: no download.

    Example: dualign demo --out runs/demo
    """
    from dualign.job.demo import demo_config
    from dualign.job.entry import run_config

    config = demo_config(seed, "assistant-quick" if quick else "assistant")
    result, code = run_config(config, Path(), out, Progress(quiet=quiet).tell, arms=full)
    finish(result, code, as_json=as_json, run=out)


def sft(
    config: Annotated[Path, typer.Argument(help="YAML config with policy.warm_start.")],
    out: Annotated[Path | None, typer.Option(help="Run directory; default runs/<run.name>-sft.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, such as run.seed=1.")] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Run the supervised stages of a job and keep the model; an interrupted run goes on with the same command.

    Example: dualign sft examples/smollm2-harm.yaml --set data.prompts=FOLDER
    """
    from dualign.config import load_config
    from dualign.job.entry import run_warm_start

    loaded = load_config(config, override)
    run = out if out is not None else Path("runs") / f"{loaded.run.name}-sft"
    finish(run_warm_start(loaded, config.parent, run, Progress(quiet=quiet).tell), 0, as_json=as_json)


DEFAULT_METHODS = "c-dpo,dpo,pd-dpo,sacpo,modpo,mocan,safedpo,kldpo,wdpo,b-dpo"


def compare(
    config: Annotated[Path, typer.Argument(help="YAML config of a job, as for `dualign train`.")],
    methods: Annotated[
        str,
        typer.Option(help="Names, or NAME:KEY=VALUE+KEY=VALUE with settings; the first is what others differ from."),
    ] = DEFAULT_METHODS,
    seeds: Annotated[str, typer.Option(help="Whole numbers.")] = "0",
    out: Annotated[Path | None, typer.Option(help="Folder of the cells; default runs/compare-<run.name>.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE for all cells.")] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option(help="No progress on stderr.")] = False,
) -> None:
    """Train every method under every seed, each in its own run directory, and print one table.

    Example: dualign compare examples/assistant.yaml --methods c-dpo,dpo,sacpo --seeds 0,1,2

    A finished cell is reused, an interrupted one goes on. Beside the cells stand compare.json, .csv, .md and .html.
    """
    from dualign.job.cells import FileFamily
    from dualign.job.compare import compare_cells
    from dualign.report.compare_page import markdown

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise UsageError(f"--seeds {seeds}: expected whole numbers with commas between") from None
    names = [name for name in methods.split(",") if name]
    if not names or len(set(names)) < len(names) or len(set(numbers)) < len(numbers):
        raise UsageError("--methods, --seeds: at least one of each is needed, and none twice")
    family = FileFamily(config, override or [])
    report = compare_cells(family, names, numbers, out, Progress(quiet=quiet).tell)
    if not printed(report, as_json=as_json):
        print(inert_lines(markdown(report)), end="")
    if report["failed"]:
        raise typer.Exit(report["exit_code"])


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory of `train` or `demo`.")],
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the path alone.")] = False,
) -> None:
    """Write RUN/report.html: one file to read, print or send, made from the run's files alone.

    Example: dualign report runs/demo
    """
    found = dualign.load_run(run)
    path = found.report()
    if not printed({"run": str(run), "verdict": found.verdict, "report": str(path)}, as_json=as_json):
        print(inert(path) if quiet else found)
