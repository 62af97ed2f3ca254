"""``dualign certify``: a file of costs, limits and caps -> a certificate."""

import difflib
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dualign.cli.columns import Columns, mapping
from dualign.errors import CERTIFIED, DataError, MissingError, UsageError

if TYPE_CHECKING:
    from dualign.certify import Requirement, Seal, Terms
    from dualign.data.cost_file import CostFile
    from dualign.maths.functionals import Functional


def certify(
    costs: Annotated[Path, typer.Argument(help="JSONL, CSV or Parquet: prompt, cost (or cost_NAME), policy, cluster.")],
    limit: Annotated[
        list[str] | None, typer.Option("--limit", help="[NAME=]D: largest allowed value; repeat for several.")
    ] = None,
    cap: Annotated[list[str] | None, typer.Option("--cap", help="[NAME=]C: costs above C count as C.")] = None,
    functional: Annotated[
        list[str] | None, typer.Option(help="[NAME=]mean, rate (share of costs > 0) or cvar:ALPHA:THRESHOLD.")
    ] = None,
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
    from dualign.certify import Terms
    from dualign.certify import certify as test
    from dualign.data.cost_file import read_costs

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
        _requirements(content.names, limit, cap or [], functional or [], scorer),
        delta=round(1 - confidence, 12),
        seed=seed,
        decoding=decoding,
        method=method,
    )
    observations = {policy: content.costs[policy] for policy in ladder}
    promise, opening = (None, None) if sealed is None else _open(sealed, content, terms, ladder)
    certificate = test(observations, terms, sealed=promise, opening=opening)
    if as_json:
        print(json.dumps(certificate.figures, allow_nan=False))
    elif quiet:
        print(certificate.verdict)
    else:
        show(certificate.figures)
    code = exit_code(certificate.verdict)
    if code != CERTIFIED:
        raise typer.Exit(code)


def exit_code(verdict: str) -> int:
    """Return the exit code of a verdict: 0, 10, 11 or 12."""
    from dualign.certify import VERDICT_CODES

    return VERDICT_CODES[verdict]


def show(figures: Mapping[str, Any]) -> None:
    """Print a certificate for people."""
    from rich import box
    from rich.console import Console, Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from dualign.cli.progress import shown

    colour = {"CERTIFIED": "green", "INVALID": "red"}.get(figures["verdict"], "yellow")
    parts: list[Any] = [shown(figures["claim"])]
    parts += [shown(f"Reason: {reason}", "red") for reason in figures.get("reasons", ())]
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
            rungs.add_row(
                shown(row["policy"]), row["verdict"], shown(closest), _figure(row["estimate"]), _figure(row["e_value"])
            )
        parts.append(rungs)
    for heading, key in (("Assumed", "assumptions"), ("Not claimed", "not_claimed")):
        if figures[key]:
            parts += [Text(f"{heading}:", style="bold")] + [shown(f"  - {line}") for line in figures[key]]
    chosen = figures["selected"] if len(figures["ladder"]) > 1 else None
    title = figures["verdict"] + (f": {chosen}" if chosen else "")
    Console(highlight=False).print(Panel(Group(*parts), title=shown(title, "bold"), border_style=colour))


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
    names: Sequence[str], limits: Sequence[str], caps: Sequence[str], functionals: Sequence[str], scorer: str
) -> "dict[str, Requirement]":
    from dualign.certify import Requirement
    from dualign.maths.functionals import Mean

    limit_of = {name: _number("--limit", text) for name, text in _named("--limit", limits, names).items()}
    cap_of = {name: _number("--cap", text) for name, text in _named("--cap", caps, names).items()}
    kind_of = {name: _functional(text) for name, text in _named("--functional", functionals, names).items()}
    for option, given in (("--cap", cap_of), ("--functional", kind_of)):
        extra = [name for name in given if name not in limit_of]
        if extra:
            raise UsageError(f"{option}: {extra[0]!r} has no --limit; add --limit {extra[0]}=D or leave it out")
    return {
        name: Requirement(limit, cap_of.get(name), kind_of.get(name, Mean()), scorer)
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
    from dualign.data.rows import LARGEST, decimal

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


def _open(path: Path, content: "CostFile", terms: "Terms", ladder: Sequence[str]) -> "tuple[Seal, int]":
    """Return the promise in the seal file and which opening this is; the first opening writes the file.

    The same costs again are no new opening: the answer is the same one.
    """
    from dualign.certify import Seal, seal, state_claim
    from dualign.runs.store import write_json

    clustered = any(costs.clusters is not None for by_name in content.costs.values() for costs in by_name.values())
    claim = state_claim(terms, ladder, unit="cluster" if clustered else "prompt")
    ids = [prompt for by_name in content.costs.values() for costs in by_name.values() for prompt in costs.prompts]
    found, evidence = seal(ids, claim), _evidence(content)
    fresh: dict[str, Any] = {"claim": found.claim, "prompts": found.prompts, "openings": []}
    kept = _read_seal(path) if path.exists() else fresh
    promise, openings = Seal(kept["claim"], kept["prompts"]), kept["openings"]
    if promise != found:
        return promise, len(openings)
    if evidence not in openings:
        openings = [*openings, evidence]
        write_json(path, kept | {"openings": openings})
    return promise, openings.index(evidence) + 1


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


def _evidence(content: "CostFile") -> str:
    """Return a hash of all costs, whatever the order of the rows."""
    rows = sorted(
        (policy, name, prompt, float(cost))
        for policy, by_name in content.costs.items()
        for name, costs in by_name.items()
        for prompt, cost in zip(costs.prompts, costs.costs, strict=True)
    )
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
