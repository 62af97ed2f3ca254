"""How a scorer is named on the command line, and the scorer that is meant."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dualign.cli.shared import AsJson, Columns, Progress, mapping, printed
from dualign.errors import ConfigError, MissingError, UsageError, inert_lines

if TYPE_CHECKING:
    from dualign.protocols import Scorer


Direction = Literal["reward", "cost"]
FILES = (".yaml", ".yml", ".json")
INLINE = "kind="
INSIDE = "scorer.yaml"
"""The description inside the folder of a fitted scorer."""


@dataclass(frozen=True, slots=True)
class NamedScorer:
    """A scorer that was named and not built yet."""

    spec: Mapping[str, Any]
    direction: Direction
    folder: Path
    """Where the paths of its keys start."""
    typed: bool
    """Whether its keys were typed, and not read from a file."""

    def build(self) -> "Scorer":
        """Return the scorer.

        Raises:
            UsageError, ConfigError: a mistake in the keys, where they were typed and where they are in a file.
            MissingError: a file or a model of it is missing.
        """
        from dualign.scorers.table import make_scorer

        try:
            return make_scorer(self.spec, direction=self.direction, folder=self.folder)
        except ConfigError as error:
            if self.typed:
                raise UsageError(str(error)) from None
            raise


def named_scorer(
    name: str, settings: Sequence[str] = (), *, direction: Direction | None, default: Direction
) -> NamedScorer:
    """Return what ``name`` stands for; nothing is built.

    Args:
        name: a kind, ``kind=K,key=value``, a YAML or JSON file, the folder of a fitted scorer, or ``module:attribute``.
        settings: further ``key=value``, for values that hold a comma.
        direction: what it is used as; none: the only one that its kind allows, else ``default``.
        default: see above.

    Raises:
        UsageError: what was typed is not of this form.
        MissingError, ConfigError: the file is missing or broken.
    """
    from dualign.scorers.table import KINDS

    inline = name.startswith(INLINE)
    file = Path(name) / INSIDE if not inline and Path(name).is_dir() else Path(name)
    typed = inline or file.suffix not in FILES
    spec = _typed(name) if typed else _read(file)
    for setting in settings:
        key, value = _setting(setting, f"--set {setting!r}", "key=value is needed, such as unit=words")
        spec[key] = value
    kind = KINDS.get(str(spec.get("kind")))
    chosen = direction or (kind.direction if kind else None) or default
    return NamedScorer(spec, chosen, Path() if typed else file.parent, typed)


def _typed(name: str) -> dict[str, Any]:
    """Return the keys of a scorer that is named without a file."""
    if name.startswith(INLINE):
        wanted = "kind=K,key=value,... is needed; put values with commas into a YAML file"
        return dict(_setting(part, f"scorer {name!r}", wanted) for part in name.split(","))
    return {"kind": "callable", "target": name} if ":" in name else {"kind": name}


def _setting(text: str, where: str, wanted: str) -> tuple[str, Any]:
    from dualign.strict import parse_yaml

    key, sign, value = text.partition("=")
    if not sign or not key:
        raise UsageError(f"{where}: {wanted}")
    try:
        return key, parse_yaml(value, f"{key} of the scorer")
    except ConfigError as error:
        raise UsageError(f"{where}: {error}; a text that is no YAML needs quotes inside the shell's own") from None


def _read(path: Path) -> dict[str, Any]:
    from dualign.strict import parse_yaml

    try:
        value = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise MissingError(f"scorer {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"scorer {path}: is not UTF-8 ({error.reason})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {type(value).__name__}; a mapping with 'kind' is needed")
    return value


def check(
    scorer: Annotated[
        str,
        typer.Argument(
            metavar="SCORER",
            help="A kind, kind=K,key=value, a YAML or JSON file, the folder of a fitted scorer, or module:attribute.",
        ),
    ],
    data: Annotated[Path, typer.Argument(help="Preference file: labelled pairs, or answers with safety flags.")],
    direction: Annotated[
        Direction | None,
        typer.Option(help="cost (up is bad) or reward (up is good); default: the kind's, else cost."),
    ] = None,
    second: Annotated[str | None, typer.Option(help="Another scorer of the same quantity, to compare with.")] = None,
    beta: Annotated[float, typer.Option(help="KL coefficient, for scores in units of their SD within a prompt.")] = 0.3,
    temperature: Annotated[float, typer.Option(help="Of the labels.")] = 1.0,
    format: Annotated[str | None, typer.Option("--format", help="Name of the format, if it is not recognised.")] = None,
    columns: Columns = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Measure a scorer against labels: order, sign, scale, batch parity, agreement; the last line is the verdict.

    Example: dualign scorer check kind=length,unit=words pairs.jsonl --direction cost

    Exit code 0 whatever the verdict is.
    """
    for name, value in (("--beta", beta), ("--temperature", temperature)):
        if not 0 < value < math.inf:
            raise UsageError(f"{name} {value:g}: a number above 0 is needed")
    from dualign.data.formats.table import describe, read_preferences
    from dualign.hashing import plain
    from dualign.scorers.checking import check_scorer, check_text

    tell = Progress(quiet=quiet).tell
    named = named_scorer(scorer, direction=direction, default="cost")
    other = None if second is None else named_scorer(second, direction=named.direction, default=named.direction)
    file = read_preferences(data, format=format, columns=mapping(columns))
    tell(describe(file))
    built = named.build()
    compared = None if other is None else other.build()
    tell(f"scoring with {built.id}" + ("" if compared is None else f" and {compared.id}"))
    report = plain(check_scorer(built, file, second=compared, beta=beta, temperature=temperature))
    if not printed(report, as_json=as_json):
        print(inert_lines(check_text(report)))


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
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Fit a reward or cost model to preference data, and measure it on held-out prompts.

    Example: dualign scorer fit cost.yaml --out scorers/cost
    """
    from dualign.hashing import plain
    from dualign.report.figures import reliability_diagram
    from dualign.runs.store import write_text
    from dualign.scorers.fitting.entry import fit_scorer, report_text
    from dualign.scorers.fitting.inputs import load_fit_config

    loaded = load_fit_config(config)
    folder = out if out is not None else Path("scorers") / config.stem
    report = fit_scorer(loaded, config.parent, folder, Progress(quiet=quiet).tell)
    write_text(folder / "reliability.svg", reliability_diagram(plain(report["held_out"]["calibration"])))
    if not printed(plain(report), as_json=as_json):
        print(inert_lines(report_text(report)))


app.command("check")(check)
