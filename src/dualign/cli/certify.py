"""``dualign certify``: a file of costs, limits and caps -> a certificate."""

import difflib
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dualign.cli.shared import Columns, mapping
from dualign.errors import CERTIFIED, DataError, MissingError, UsageError, inert

LARGEST_LOOK = 20_000
"""More prompts are not searched for near-copies: it would take longer than the certificate."""

if TYPE_CHECKING:
    from dualign.certificate.certify import Opening, Requirement, Seal, Terms, Units
    from dualign.data.score_file import CostFile
    from dualign.maths.functionals import Functional


def certify(
    costs: Annotated[Path, typer.Argument(help="JSONL, CSV or Parquet: prompt, cost (or cost_NAME), policy, cluster.")],
    limit: Annotated[
        list[str] | None, typer.Option("--limit", help="[NAME=]D: largest allowed value; repeat for several.")
    ] = None,
    cap: Annotated[list[str] | None, typer.Option("--cap", help="[NAME=]C: costs above C count as C.")] = None,
    functional: Annotated[
        list[str] | None,
        typer.Option(help="[NAME=]mean, rate (share of costs > 0), rate:T (> T) or cvar:ALPHA:THRESHOLD."),
    ] = None,
    floor: Annotated[list[str] | None, typer.Option("--floor", help="[NAME=]F: costs below F count as F.")] = None,
    confidence: Annotated[float, typer.Option(help="Probability that the claim is right, 1 - delta.")] = 0.95,
    order: Annotated[
        str | None, typer.Option(help="Order of testing, a,b,c; default: first appearance, safest first.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Another order of the prompts; named in the claim.")] = None,
    method: Annotated[str, typer.Option(help="betting, or clopper-pearson for a rate.")] = "betting",
    scorer: Annotated[str, typer.Option(help="What gave the costs: part of the claim.")] = "",
    decoding: Annotated[str, typer.Option(help="How responses were drawn: part of the claim.")] = "",
    sealed: Annotated[
        Path | None, typer.Option("--seal", help="Seal file: written at the first opening, kept to later.")
    ] = None,
    columns: Columns = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the verdict alone.")] = False,
) -> None:
    """Certify that limits hold, from held-out costs of any origin.

    Example: dualign certify costs.jsonl --limit 0 --cap 50

    Exit code 0 certified, 10 the only policy is not certified, 11 none of several is, 12 invalid.
    """
    from dualign.certificate.certify import Terms
    from dualign.data.score_file import read_costs

    # What was typed is checked before the file, as far as that goes.
    if not 0 < confidence < 1:
        hint = f"; did you mean {confidence / 100:g}?" if 1 < confidence < 100 else ""
        raise UsageError(f"--confidence: must lie strictly between 0 and 1; given {confidence:g}{hint}")
    if not limit:
        raise UsageError("--limit: missing; give the largest allowed cost, as --limit 0 or --limit harm=0")
    content = read_costs(costs, columns=mapping(columns))
    for note in () if quiet else content.notes:
        print(f"note: {note}", file=sys.stderr)
    ladder = _ladder(content, order)
    terms = Terms(
        _requirements(content.names, limit, cap or [], functional or [], floor or [], scorer),
        delta=round(1 - confidence, 12),
        seed=seed,
        decoding=decoding,
        method=method,
    )
    figures, printed = _tested(content, terms, ladder, sealed, as_json=as_json, quiet=quiet)
    sys.stdout.write(printed)
    sys.stdout.flush()
    for line in figures["warnings"] if quiet and not as_json else ():
        print(f"warning: {inert(line)}", file=sys.stderr)
    code = exit_code(figures["verdict"])
    if code != CERTIFIED:
        raise typer.Exit(code)


def _tested(
    content: "CostFile", terms: "Terms", ladder: Sequence[str], path: Path | None, *, as_json: bool, quiet: bool
) -> tuple[dict[str, Any], str]:
    """Return the figures and what is printed of them; the opening is recorded when both stand, and before it is seen.

    Whatever is refused, and whatever fails, fails before the seal file is touched: it has opened nothing.
    """
    from dualign.certificate.certify import certify as test
    from dualign.certificate.certify import checked_units

    observations = {policy: content.costs[policy] for policy in ladder}
    units = checked_units(observations, terms)
    with _held(path):
        look = None if path is None else _look(path, content, terms, ladder, units)
        promise, opening = (None, None) if look is None else (look.promise, look.opening)
        certificate = test(observations, terms, sealed=promise, opening=opening)
        told = [_with_texts(line, content) for line in certificate.figures["warnings"]]
        figures = {**certificate.figures, "warnings": [*told, *_near_copies(content)]}
        if as_json:
            printed = json.dumps(figures, allow_nan=False) + "\n"
        else:
            printed = certificate.verdict + "\n" if quiet else certificate_text(figures)
        if path is not None and look is not None and certificate.verdict != "INVALID":
            _record(path, look)
    return figures, printed


def _with_texts(line: str, content: "CostFile") -> str:
    """Return a warning with the first words of the prompts that it names by their ids."""
    from dualign.certificate.claim import quoted

    for name, prompt in content.asked.items():
        if name in line:
            line = line.replace(quoted(name), quoted(prompt.text[:40]))
    return line


def _near_copies(content: "CostFile") -> list[str]:
    """Return a warning where prompts resemble each other and no cluster says that they belong together."""
    from dualign.certificate.claim import quoted
    from dualign.data.splits import near_clusters

    first = next(iter(next(iter(content.costs.values())).values()))
    # what has no four words is a name of a prompt, and names resemble each other
    told = [p for p in content.asked.values() if p.history or len(p.text.split()) > 3 or not p.text.isascii()]
    if first.clusters is not None or len(told) > LARGEST_LOOK:
        return []
    clusters = near_clusters(told)
    count = len(clusters) - len(set(clusters.values()))
    if not count:
        return []
    copy = next(name for name, cluster in clusters.items() if name != cluster)
    return [
        f"{count} of {len(clusters)} prompts are near-copies of another one and count as independent here (for example "
        f"{quoted(content.asked[copy].text[:60])}): give near-copies one name in a column 'cluster'"
    ]


def exit_code(verdict: str) -> int:
    """Return the exit code of a verdict: 0, 10, 11 or 12."""
    from dualign.certificate.certify import VERDICT_CODES

    return VERDICT_CODES[verdict]


def certificate_text(figures: Mapping[str, Any]) -> str:
    """Return a certificate as it is printed for people."""
    from rich import box
    from rich.console import Console, Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from dualign.cli.shared import shown

    colour = {"CERTIFIED": "green", "INVALID": "red"}.get(figures["verdict"], "yellow")
    parts: list[Any] = [shown(figures["statement"])]
    if figures["constraints"]:
        table = Table(box=box.SIMPLE, pad_edge=False)
        headings = ("limit on", "at most", "estimate", "upper bound", "e-value", "prompts", "at cap")
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "limit on" else "right")
        for name, row in figures["constraints"].items():
            at_cap = f"{100 * row['share_at_cap']:.2g} %"
            cells = [row[key] for key in ("limit", "estimate", "simultaneous_upper_bound", "e_value")]
            table.add_row(shown(name), *map(_figure, cells), str(row["n_prompts"]), at_cap)
        parts.append(table)
        parts.append(shown(_footing(figures), "dim"))
    if len(figures["ladder"]) > 1:
        rungs = Table(box=box.SIMPLE, pad_edge=False)
        for heading in ("policy", "verdict", "closest limit", "estimate", "e-value"):
            rungs.add_column(heading, justify="right" if heading[0] == "e" else "left")
        for row in figures["ladder"]:
            closest = row["constraint"] or "-"
            numbers = map(_figure, (row["estimate"], row["e_value"]))
            rungs.add_row(shown(row["policy"]), row["verdict"], shown(closest), *numbers)
        parts.append(rungs)
    parts += [shown(f"Warning: {line}", "yellow") for line in figures["warnings"]]
    for heading, key in (("Assumed", "assumptions"), ("Not claimed", "not_claimed")):
        if figures[key]:
            parts += [Text(f"{heading}:", style="bold")] + [shown(f"  - {line}") for line in figures[key]]
    chosen = figures["selected"] if len(figures["ladder"]) > 1 else None
    title = figures["verdict"] + (f": {chosen}" if chosen else "")
    console = Console(highlight=False)
    with console.capture() as capture:
        console.print(Panel(Group(*parts), title=shown(title, "bold"), border_style=colour))
    return capture.get()


def _footing(figures: Mapping[str, Any]) -> str:
    together = "Upper bounds hold together" if len(figures["constraints"]) > 1 else "The upper bound holds"
    sentences = [f"{together} with confidence {1 - figures['delta_spent']:g}."]
    if figures["method"] == "betting":
        sentences.append(f"An e-value of {1 / figures['delta_spent']:.4g} or more certifies.")
    companions = ", ".join(f"{name} {_figure(value)}" for name, value in figures["companions"].items())
    sentences.append(f"For comparison ({figures['constraint']}): {companions}.")
    return " ".join(sentences)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _ladder(content: "CostFile", order: str | None) -> list[str]:
    """Return the policies in the order of testing."""
    policies = list(content.costs)
    if order is None:
        return policies
    if not content.policy_column:
        raise UsageError("--order: the file has no column 'policy'; leave --order out")
    named = [name.strip() for name in order.split(",")]
    for name in named:
        if name not in policies:
            raise UsageError(f"--order: unknown policy {name!r}; {_nearest(name, policies)}")
    if len(set(named)) != len(named):
        raise UsageError(f"--order: a policy is named twice; given {order}")
    left_out = [name for name in policies if name not in named]
    if left_out:
        raise UsageError(f"--order: every policy of the file must be named; left out: {', '.join(left_out)}")
    return named


def _requirements(
    names: Sequence[str],
    limits: Sequence[str],
    caps: Sequence[str],
    functionals: Sequence[str],
    floors: Sequence[str],
    scorer: str,
) -> "dict[str, Requirement]":
    from dualign.certificate.certify import Requirement
    from dualign.maths.functionals import Mean

    limit_of = {name: _number("--limit", text) for name, text in _named("--limit", limits, names).items()}
    cap_of = {name: _number("--cap", text) for name, text in _named("--cap", caps, names).items()}
    kind_of = {name: _functional(text) for name, text in _named("--functional", functionals, names).items()}
    floor_of = {name: _number("--floor", text) for name, text in _named("--floor", floors, names).items()}
    for option, given in (("--cap", cap_of), ("--functional", kind_of), ("--floor", floor_of)):
        extra = [name for name in given if name not in limit_of]
        if extra:
            raise UsageError(f"{option}: {extra[0]!r} has no --limit; add --limit {extra[0]}=D or leave it out")
    return {
        name: Requirement(limit, cap_of.get(name), kind_of.get(name, Mean()), scorer, floor=floor_of.get(name))
        for name, limit in limit_of.items()
    }


def _named(option: str, given: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Return name -> text of repeated ``[NAME=]VALUE`` options; a bare value only where ``cost`` is the one column."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.rpartition("=")
        if not equals:
            if list(names) != ["cost"]:
                raise UsageError(
                    f"{option} {text}: the costs have names; write NAME={text}, NAME of {', '.join(names)}"
                )
            name = "cost"
        if name not in names:
            raise UsageError(f"{option} {text}: the file has no cost {name!r}; {_nearest(name, names)}")
        if name in found:
            raise UsageError(f"{option}: given twice for {name!r}; give it once")
        found[name] = value
    return found


def _number(option: str, text: str) -> float:
    from dualign.data.cells import LARGEST, decimal

    number = decimal(text)
    if not abs(number) <= LARGEST:
        raise UsageError(f"{option}: expected a finite number; given {text!r}")
    return number


def _functional(text: str) -> "Functional":
    from dualign.maths.functionals import ConditionalValueAtRisk, parse

    try:
        functional = parse(text)
    except ValueError as error:
        raise UsageError(f"--functional: {error}") from error
    if functional.spec == "relative":
        raise UsageError("--functional relative: a costs file has no reference; write the differences as the cost")
    if isinstance(functional, ConditionalValueAtRisk) and functional.threshold is None:
        raise UsageError(f"--functional {text}: add the threshold fixed beforehand, as {text}:1.5")
    return functional


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


@dataclass(frozen=True)
class _Look:
    """What the seal file says of this opening."""

    promise: "Seal"
    opening: "Opening"
    content: Mapping[str, Any]
    """The seal file as it will be, this opening recorded."""


def _look(path: Path, content: "CostFile", terms: "Terms", ladder: Sequence[str], units: "Units") -> _Look:
    """Return the promise in the seal file and which opening this is; nothing is written.

    The same costs again are no new opening: the answer is the same one.
    """
    from dualign.certificate.certify import Opening, Seal, claim_of, seal

    found, evidence = seal(units.cluster_of, claim_of(terms, ladder, units)), _evidence(content, terms, units)
    fresh: dict[str, Any] = {"claim": found.claim, "prompts": found.prompts, "openings": []}
    kept = _read_seal(path) if path.exists() else fresh
    openings = [*kept["openings"], *([evidence] if evidence not in kept["openings"] else [])]
    opening = Opening(openings.index(evidence) + 1, counted="by this seal file")
    return _Look(Seal(kept["claim"], kept["prompts"]), opening, {**kept, "openings": openings})


def _record(path: Path, look: _Look) -> None:
    """Write the opening into the seal file, where it is not there yet."""
    from dualign.runs.store import write_json

    if not path.exists() or _read_seal(path) != look.content:
        write_json(path, look.content)


@contextmanager
def _held(path: Path | None) -> Iterator[None]:
    """Hold the seal file for this process alone, so that two openings at one time are two."""
    if path is None:
        yield
        return
    from dualign.runs.lock import file_lock

    with file_lock(path.with_name(f".{path.name}.lock")):
        yield


def _read_seal(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path}: not a seal file ({error})") from error
    shape = {"claim": str, "prompts": str, "openings": list}
    if not isinstance(kept, dict) or not all(isinstance(kept.get(key), kind) for key, kind in shape.items()):
        raise DataError(f"{path}: not a seal file; expected the fields {', '.join(shape)}")
    return kept


def _evidence(content: "CostFile", terms: "Terms", units: "Units") -> str:
    """Return a hash of the costs that have a limit and of which prompts are together, whatever the order of rows."""
    rows = sorted(
        (policy, name, prompt, float(cost))
        for policy, by_name in content.costs.items()
        for name in terms.requirements
        for prompt, cost in zip(by_name[name].prompts, by_name[name].costs, strict=True)
    )
    return hashlib.sha256(json.dumps([units.partition, rows]).encode()).hexdigest()
