"""``dualign scorer``: reward and cost models of one's own, and how far any scorer can be trusted."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dualign.cli import scorer_check
from dualign.cli.progress import Progress
from dualign.errors import inert_lines

app = typer.Typer(
    name="scorer",
    help="Fit reward and cost models, and check scorers against labels.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("fit")
def fit(
    config: Annotated[Path, typer.Argument(help="YAML config: kind, data, path, model.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; default scorers/<config's name>.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Fit a reward or cost model to preference data, and measure it on held-out prompts.

    Example: dualign scorer fit cost.yaml --out scorers/cost
    """
    from dualign.hashing import plain
    from dualign.report.reliability import reliability_diagram
    from dualign.runs.store import write_text
    from dualign.scorers.fitting.config import load_fit_config
    from dualign.scorers.fitting.entry import fit_scorer
    from dualign.scorers.fitting.report import report_text

    loaded = load_fit_config(config)
    folder = out if out is not None else Path("scorers") / config.stem
    report = fit_scorer(loaded, config.parent, folder, Progress(quiet=quiet).tell)
    write_text(folder / "reliability.svg", reliability_diagram(plain(report["held_out"]["calibration"])))
    print(json.dumps(plain(report), allow_nan=False) if json_output else inert_lines(report_text(report)))


app.command("check")(scorer_check.check)
