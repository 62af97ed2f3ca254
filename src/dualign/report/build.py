"""The report of a run as one HTML file, and the end of a run in a terminal.

From the files of the run to what each section shows: no markup here, no arithmetic in templates.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.errors import inert_lines
from dualign.report import figures
from dualign.report.reading import (
    NOTHING,
    Row,
    RunFiles,
    duration,
    figure,
    interval,
    is_figure,
    measured,
    multipliers,
    part,
    read_run,
    share,
)
from dualign.runs import store

REPORT = "report.html"
PROMPTS_SHOWN = 20
MET: dict[object, str] = {True: "met", False: "broken"}


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure with the sentence below it."""

    svg: str
    caption: str


def verdict_word(files: RunFiles) -> str:
    """Return the certificate's verdict; without one that of a world that was summed up, else NO CERTIFICATE."""
    told = files.result if _enumerated(files) else files.certificate
    return str(told.get("verdict") or "NO CERTIFICATE").upper()


def _enumerated(files: RunFiles) -> bool:
    """Return whether every figure of the run is a sum over a finite world, so that there is nothing to certify."""
    return not files.certificate and files.result.get("enumerated") is True


def certified_figures(files: RunFiles) -> dict[str, Row]:
    """Return the certificate's figures by constraint; a certificate of one limit may hold them at its top."""
    limits, constraints = files.limits, part(files.certificate, "constraints")
    if files.certificate and not constraints and len(limits) == 1:
        constraints = dict.fromkeys(limits, files.certificate)
    rows = {str(name): row for name, row in constraints.items() if row and isinstance(row, Mapping)}
    return {name: {"limit": limits.get(name), **row} for name, row in rows.items()}


def verdict_sentence(files: RunFiles) -> str:
    """Return the verdict as one sentence that a reader who sees nothing else may rely on."""
    word, certificate = verdict_word(files), files.certificate
    if word == "INVALID":
        reasons = "; ".join(map(str, certificate.get("reasons") or ()))
        why = f" ({reasons})" if reasons else ""
        return f"The certificate is invalid{why}: it proves nothing about the limits, whatever the other figures say."
    if _enumerated(files):
        says, ending = ("meets", ", without bounds") if word == "CERTIFIED" else ("does not meet", "")
        return f"The selected policy {says} its limits: a finite world, summed over all of its responses{ending}."
    if not certificate:
        return "No certificate was made: nothing below is proof that a limit holds."
    if word == "CERTIFIED":
        return _certified(files)
    failing = " and ".join(
        f"{name} has the upper bound {figure(row['upper_bound'])}, above its limit {figure(row['limit'])}"
        for name, row in certified_figures(files).items()
        if not _holds(row) and is_figure(row.get("upper_bound"))
    )
    who = "None of the candidates is" if word == "NO CERTIFIED POLICY" else "The candidate policy is not"
    why = f": {failing}, measured {_sealed(certificate)}" if failing else ""
    return f"{who} certified{why}. The limit may hold, but these data do not prove it."


def _certified(files: RunFiles) -> str:
    parts = " and ".join(
        f"{name} is at most {figure(row['limit'])} (upper bound {figure(row.get('upper_bound'))})"
        for name, row in certified_figures(files).items()
    )
    if not parts:
        return "The selected policy is certified; the figures of the certificate are not among the files."
    delta = files.certificate.get("delta")
    sure = f"with {figure(100 * (1 - delta))} % confidence" if is_figure(delta) else "at the stated confidence"
    return f"The selected policy meets its limits: {sure}, {parts}, measured {_sealed(files.certificate)}."


def _sealed(certificate: Row) -> str:
    """Return which prompts the certificate looked at."""
    prompts, opening = certificate.get("n_prompts"), certificate.get("opening")
    if is_figure(opening) and opening > 1:
        number = int(opening)
        ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
        return f"on {figure(prompts)} prompts that were opened for the {number}{ending} time"
    return f"on {figure(prompts)} prompts that no earlier step had seen" if is_figure(prompts) else "on sealed prompts"


def _holds(row: Row) -> bool:
    if "verdict" in row:
        return bool(row["verdict"] == "CERTIFIED")
    bound, limit = row.get("upper_bound"), row["limit"]
    return is_figure(bound) and is_figure(limit) and bound <= limit


def _cost(policy: Row, name: str) -> str:
    """Return a policy's cost with its interval."""
    return measured(part(policy, "costs").get(name), part(policy, "errors").get(name))


def key_figures(files: RunFiles) -> Iterator[tuple[str, str, str]]:
    """Yield (name, figure of the selected policy, remark) for the strip below the verdict."""
    selected, reference = files.selected, files.reference
    if not selected:
        return
    reward = measured(selected.get("reward"), selected.get("reward_error"))
    yield "reward", reward, f"reference {figure(reference.get('reward'))}"
    for name, limit in files.limits.items():
        before = figure(part(reference, "costs").get(name))
        yield name, _cost(selected, name), f"limit {figure(limit)}, reference {before}"
    for name, value in part(selected, "multipliers").items():
        normalised = part(selected, "multipliers_normalised").get(name)
        flip = part(files.result, "flip_multiplier").get(name)
        remarks = (("normalised", normalised), ("a typical pair flips at", flip))
        said = ", ".join(f"{words} {figure(number)}" for words, number in remarks if is_figure(number))
        yield f"multiplier of {name}", figure(value), said
    yield "distance from reference", figure(selected.get("kl")), f"KL in nats, β = {figure(files.result.get('beta'))}"


def limit_rows(files: RunFiles) -> Iterator[dict[str, str]]:
    """Yield one row a limit: what is bounded, on tune prompts, on sealed prompts, the bound, the verdict."""
    bounds = certified_figures(files)
    for name, limit in files.limits.items():
        rule, row = part(part(files.result, "constraints"), name), bounds.get(name, {})
        where = ", ".join(f"{key} = {value}" for key, value in part(rule, "where").items())
        yield {
            "name": name,
            "what": str(rule.get("functional") or "mean") + (f", where {where}" if where else ""),
            "limit": figure(limit),
            "reference": _cost(files.reference, name),
            "selected": _cost(files.selected, name),
            "estimate": figure(row.get("estimate")),
            "bound": figure(row.get("upper_bound")),
            "e_value": figure(row.get("e_value")),
            "verdict": ("holds" if _holds(row) else "not proved") if row else "not tested",
        }


def pictures(files: RunFiles) -> dict[str, list[Picture]]:
    """Return the figures by section; a section without data has none."""
    return {
        "front": list(_fronts(files)),
        "rounds": list(_round_pictures(files)),
        "histograms": list(_histograms(files)),
    }


def _fronts(files: RunFiles) -> Iterator[Picture]:
    chosen = [bool(files.selected) and row.get("name") == files.selected.get("name") for row in files.iterates]
    roles = [str(row.get("role")) for row in files.iterates]
    policies = [(files.reference, "reference", False), *zip(files.iterates, roles, chosen, strict=True)]
    for name, limit in files.limits.items():
        found = [figures.as_point(row, name, role=role, selected=picked) for row, role, picked in policies]
        if points := [point for point in found if point is not None]:
            caption = f"Every policy of the run: reward against {name}, with 95 % intervals, on the tune prompts."
            yield Picture(figures.front(points, cost=name, limit=limit), caption)


def _round_pictures(files: RunFiles) -> Iterator[Picture]:
    found = [iterate for iterate in files.iterates if iterate.get("role") in ("dpo", "search")]
    if found and files.limits:
        caption = "The search: the multiplier tried in each round, and by how much the cost then passed the limit."
        yield Picture(figures.rounds(found, files.limits), caption)


def _histograms(files: RunFiles) -> Iterator[Picture]:
    selected, reference = _selected_answers(files), _answers(files, "reference") or files.reference_scores
    for name, limit in files.limits.items():
        left, right = _column(reference, f"cost_{name}"), _column(selected, f"cost_{name}")
        if left and right:
            functional = part(part(files.result, "constraints"), name).get("functional", "mean")
            line = limit if functional == "mean" else None
            counts = f"{figure(len(left))} responses of the reference, {figure(len(right))} of the selected policy"
            yield Picture(figures.histogram(left, right, cost=name, limit=line), f"{name}: {counts}.")


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [float(row[name]) for row in rows if is_figure(row.get(name))]


def _answers(files: RunFiles, policy: str) -> list[Row]:
    return [row for row in files.answers if row.get("policy") == policy]


def _selected_answers(files: RunFiles) -> list[Row]:
    """Return the selected policy's answers, under either of the names that it may have in the table."""
    return _answers(files, "selected") or _answers(files, str(files.selected.get("name")))


def answer_pairs(files: RunFiles) -> list[dict[str, Any]]:
    """Return up to twenty prompts with the reference's and the selected policy's answer.

    The slices take turns, and within one the prompts' hashes decide: no look at the answers.
    """
    reference, selected = (
        {str(row.get("prompt_id")): row for row in reversed(rows)}  # the first of several stays
        for rows in (_answers(files, "reference"), _selected_answers(files))
    )
    slices: dict[str, list[str]] = {}
    for key in sorted(set(reference) & set(selected)):
        slices.setdefault(str(reference[key].get("slice") or ""), []).append(key)
    longest = max(map(len, slices.values()), default=0)
    turns = [slices[name][turn] for turn in range(longest) for name in sorted(slices) if turn < len(slices[name])]
    return [
        {
            "prompt": reference[key].get("prompt"),
            "slice": reference[key].get("slice"),
            "answers": [_answer("Reference", reference[key]), _answer("Selected", selected[key])],
        }
        for key in turns[:PROMPTS_SHOWN]
    ]


def _answer(who: str, row: Row) -> dict[str, Any]:
    costs = {name.removeprefix("cost_"): value for name, value in row.items() if name.startswith("cost_")}
    scores = [("reward", figure(row.get("reward"))), *((name, figure(value)) for name, value in costs.items())]
    return {"who": who, "text": row.get("response"), "scores": scores}


def comparison_rows(files: RunFiles) -> list[dict[str, Any]]:
    """Return the paired comparisons; ``away_from_zero`` says that the interval leaves zero out."""
    return [
        {
            **row,
            "difference": figure(row.get("difference")),
            "interval": interval(row.get("low"), row.get("high")),
            "n": figure(row.get("n")),
            "away_from_zero": is_figure(row.get("low")) and is_figure(row.get("high")) and row["low"] * row["high"] > 0,
        }
        for row in files.comparisons
    ]


def iterate_rows(files: RunFiles) -> Iterator[dict[str, str]]:
    """Yield one row a policy of the run, in the order in which they were made."""
    chosen = files.selected.get("name")
    for iterate in files.iterates:
        yield {
            "name": str(iterate.get("name")),
            "selected": "selected" if iterate.get("name") == chosen else "",
            "multipliers": multipliers(iterate.get("multipliers")),
            "normalised": multipliers(iterate.get("multipliers_normalised")),
            "reward": measured(iterate.get("reward"), iterate.get("reward_error")),
            "costs": "; ".join(_cost(iterate, name) for name in files.limits),
            "kl": figure(iterate.get("kl")),
            "slope": figure(iterate.get("slope_of_fit")),
            "steps": figure(iterate.get("steps")),
            "met": MET.get(iterate.get("limits_met"), ""),
        }


def exact_rows(files: RunFiles) -> Iterator[dict[str, str]]:
    """Yield the exact optimum, the selected policy's true figures and every arm, for the exact section."""
    exact, limits = files.exact, files.limits
    entries = [("exact optimum", part(exact, "optimum"), "0", "met")]
    entries.append(("selected", part(exact, "selected"), figure(exact.get("gap")), ""))
    for arm in exact.get("arms") or []:
        entries.append((str(arm.get("name")), arm, figure(arm.get("gap")), MET.get(arm.get("limits_met"), "")))
    for name, row, gap, met in entries:
        costs = part(row, "costs")
        broken = any(is_figure(costs.get(limited)) and costs[limited] > limit for limited, limit in limits.items())
        yield {
            "name": name,
            "reward": figure(row.get("reward")),
            "costs": "; ".join(figure(costs.get(limited)) for limited in limits),
            "kl": figure(row.get("kl")),
            "objective": figure(row.get("objective")),
            "gap": gap,
            "met": met or (MET[not broken] if broken or costs else ""),
        }


# -- the whole -----------------------------------------------------------------------------------------------------


def summary_text(run: Path) -> str:
    """Return a summary of ``run`` for a terminal, in lines of plain text without a trailing newline."""
    files = read_run(run)
    lines = [verdict_word(files), *_wrapped(verdict_sentence(files)), ""]
    if files.certificate.get("statement"):
        lines += [*_wrapped(str(files.certificate["statement"])), ""]
    lines += _table(files)
    if exact := files.exact:
        parts = f"{figure(exact.get('gap_scores'))} learned scores, {figure(exact.get('gap_training'))} training"
        said = f"Gap to the exact optimum: {figure(exact.get('gap'))} ({parts}). {exact.get('sentence') or ''}"
        lines += ["", *_wrapped(said.strip())]
    warnings = files.result.get("warnings")
    for line in warnings if isinstance(warnings, list) else []:
        lines += ["", *_wrapped(f"Warning: {line}.")]
    if (run / REPORT).exists():
        lines += ["", f"report: {run / REPORT}"]
    return inert_lines("\n".join(lines))


def _table(files: RunFiles) -> list[str]:
    rows = [("policy", "λ", "reward", "; ".join(files.limits) or "cost", "KL", "limits")]
    rows += [
        (("* " if r["selected"] else "  ") + r["name"], r["multipliers"], r["reward"], r["costs"], r["kl"], r["met"])
        for r in iterate_rows(files)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 96) or [""]


def build_report(run: Path) -> Path:
    """Return the path of ``report.html``, made from the files of ``run`` alone.

    Raises:
        MissingError: there is no result to report on.
        DataError: a file of the run is damaged; it is named.
        StorageError: the report cannot be written.
    """
    return store.write_text(run / REPORT, render(read_run(run)), run=run)


def render(files: RunFiles) -> str:
    """Return the report of ``files`` as HTML; every text of the run is escaped."""
    return page(
        "report.html.j2",
        files=files,
        word=verdict_word(files),
        sentence=verdict_sentence(files),
        certificate=files.certificate,
        chosen=files.selected.get("name"),
        key=list(key_figures(files)),
        limits=list(files.limits),
        limit_rows=list(limit_rows(files)),
        pictures=pictures(files),
        iterates=list(iterate_rows(files)),
        comparisons=comparison_rows(files),
        exact_rows=list(exact_rows(files)) if files.exact else [],
        pairs=answer_pairs(files),
    )


def page(template: str, **content: Any) -> str:
    """Return a page of ``templates/``; every text in ``content`` is escaped, but for drawings, which are our markup."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dualign.report", "templates"),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        figure=figure,
        share=share,
        duration=duration,
        multiplier=lambda value: multipliers(value) or NOTHING,
    )
    return environment.get_template(template).render(**content)
