"""From the files of a run to what each section of the report shows. No markup here, no arithmetic in templates."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualign.report import figures
from dualign.report.reading import Row, RunFiles, figure, interval, is_figure, measured, multiplier_label

PROMPTS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure with the sentence below it."""

    svg: str
    caption: str


def limits(files: RunFiles) -> dict[str, float]:
    """Return the limit of every constraint that has one, in the order of the run."""
    return {str(n): float(v) for n, v in (files.result.get("limits") or {}).items() if is_figure(v)}


def verdict_word(files: RunFiles) -> str:
    """Return the verdict: the certificate's; without one nothing is certified, but in a world that was summed up."""
    if _enumerated(files):
        return str(files.result.get("verdict") or "NO CERTIFICATE").upper()
    return str(files.certificate.get("verdict") or "NO CERTIFICATE").upper()


def _enumerated(files: RunFiles) -> bool:
    """Return whether every figure of the run is a sum over a finite world, so that there is nothing to certify."""
    return not files.certificate and files.result.get("enumerated") is True


def certified_figures(files: RunFiles) -> dict[str, Row]:
    """Return the certificate's figures by constraint; a certificate of one limit may hold them at its top."""
    constraints = files.certificate.get("constraints") or {}
    if constraints or not files.certificate:
        return {str(name): row for name, row in constraints.items() if isinstance(row, Mapping)}
    names = list(limits(files))
    return {names[0]: files.certificate} if len(names) == 1 else {}


def verdict_sentence(files: RunFiles) -> str:
    """Return the verdict as one sentence that a reader who sees nothing else may rely on."""
    word, bounds = verdict_word(files), certified_figures(files)
    given = limits(files)
    parts = [
        f"{name} is at most {figure(row.get('limit', given.get(name)))} (upper bound {figure(row.get('upper_bound'))})"
        for name, row in bounds.items()
    ]
    prompts = files.certificate.get("n_prompts")
    sealed = (
        f"on {figure(prompts)} prompts that no earlier step had seen" if is_figure(prompts) else "on sealed prompts"
    )
    opening = files.certificate.get("opening")
    if is_figure(opening) and opening > 1:
        sealed = f"on {figure(prompts)} prompts that were opened for the {_ordinal(int(opening))} time"
    delta = files.certificate.get("delta")
    sure = f"with {figure(100 * (1 - delta))} % confidence" if is_figure(delta) else "at the stated confidence"
    if word == "CERTIFIED" and _enumerated(files):
        return "The selected policy meets its limits: a finite world, summed over all of its responses, without bounds."
    if word == "CERTIFIED" and parts:
        return f"The selected policy meets its limits: {sure}, {' and '.join(parts)}, measured {sealed}."
    if word == "CERTIFIED":
        return "The selected policy is certified; the figures of the certificate are not among the files."
    if word == "INVALID":
        reasons = "; ".join(map(str, files.certificate.get("reasons") or ()))
        why = f" ({reasons})" if reasons else ""
        return f"The certificate is invalid{why}: it proves nothing about the limits, whatever the other figures say."
    if _enumerated(files):
        return "The selected policy does not meet its limits: a finite world, summed over all of its responses."
    if not files.certificate:
        return "No certificate was made: nothing below is proof that a limit holds."
    failing = [
        f"{name} has the upper bound {figure(row.get('upper_bound'))}, above its limit"
        f" {figure(row.get('limit', given.get(name)))}"
        for name, row in bounds.items()
        if not _holds(row, given.get(name)) and is_figure(row.get("upper_bound"))
    ]
    who = "None of the candidates is" if word == "NO CERTIFIED POLICY" else "The candidate policy is not"
    why = f": {' and '.join(failing)}, measured {sealed}" if failing else ""
    return f"{who} certified{why}. The limit may hold, but these data do not prove it."


def _ordinal(number: int) -> str:
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if 10 <= number % 100 <= 20 else endings.get(number % 10, 'th')}"


def _holds(row: Row, limit: float | None) -> bool:
    if "verdict" in row:
        return bool(row["verdict"] == "CERTIFIED")
    bound, limit = row.get("upper_bound"), row.get("limit", limit)
    return is_figure(bound) and is_figure(limit) and bound <= limit


def key_figures(files: RunFiles) -> Iterator[tuple[str, str, str]]:
    """Yield (name, figure of the selected policy, remark) for the strip below the verdict."""
    selected, reference = files.result.get("selected") or {}, files.result.get("reference") or {}
    if not selected:
        return
    yield (
        "reward",
        measured(selected.get("reward"), selected.get("reward_error")),
        f"reference {figure(reference.get('reward'))}",
    )
    for name, limit in limits(files).items():
        cost = measured((selected.get("costs") or {}).get(name), (selected.get("errors") or {}).get(name))
        yield name, cost, f"limit {figure(limit)}, reference {figure((reference.get('costs') or {}).get(name))}"
    for name, value in (selected.get("multipliers") or {}).items():
        yield f"multiplier of {name}", figure(value), _multiplier_remark(files, name)
    yield "distance from reference", figure(selected.get("kl")), f"KL in nats, β = {figure(files.result.get('beta'))}"


def _multiplier_remark(files: RunFiles, name: str) -> str:
    selected = files.result.get("selected") or {}
    normalised = (selected.get("multipliers_normalised") or {}).get(name)
    flip = (files.result.get("flip_multiplier") or {}).get(name)
    remarks = [f"normalised {figure(normalised)}"] * is_figure(normalised)
    remarks += [f"a typical pair flips at {figure(flip)}"] * is_figure(flip)
    return ", ".join(remarks)


def limit_rows(files: RunFiles) -> Iterator[dict[str, str]]:
    """Yield one row a limit: what is bounded, on tune prompts, on sealed prompts, the bound, the verdict."""
    bounds = certified_figures(files)
    selected, reference = files.result.get("selected") or {}, files.result.get("reference") or {}
    for name, limit in limits(files).items():
        rule = (files.result.get("constraints") or {}).get(name) or {}
        row = bounds.get(name, {})
        where = ", ".join(f"{key} = {value}" for key, value in (rule.get("where") or {}).items())
        yield {
            "name": name,
            "what": str(rule.get("functional") or "mean") + (f", where {where}" if where else ""),
            "limit": figure(limit),
            "reference": measured((reference.get("costs") or {}).get(name), (reference.get("errors") or {}).get(name)),
            "selected": measured((selected.get("costs") or {}).get(name), (selected.get("errors") or {}).get(name)),
            "estimate": figure(row.get("estimate")),
            "bound": figure(row.get("upper_bound")),
            "e_value": figure(row.get("e_value")),
            "verdict": ("holds" if _holds(row, limit) else "not proved") if row else "not tested",
        }


def pictures(files: RunFiles) -> dict[str, list[Picture]]:
    """Return the figures by section; a section without data has none."""
    return {
        "front": list(_fronts(files)),
        "rounds": list(_round_pictures(files)),
        "histograms": list(_histograms(files)),
    }


def _fronts(files: RunFiles) -> Iterator[Picture]:
    selected = files.result.get("selected") or {}
    for name, limit in limits(files).items():
        found = [figures.as_point(files.result.get("reference") or {}, name, role="reference")]
        for iterate in files.result.get("iterates") or []:
            chosen = bool(selected) and iterate.get("name") == selected.get("name")
            found.append(figures.as_point(iterate, name, role=str(iterate.get("role")), selected=chosen))
        points = [point for point in found if point is not None]
        if points:
            caption = f"Every policy of the run: reward against {name}, with 95 % intervals, on the tune prompts."
            yield Picture(figures.front(points, cost=name, limit=limit), caption)


def search_iterates(files: RunFiles) -> list[Row]:
    """Return the iterates of the search for the multiplier: plain DPO first, then the rounds."""
    return [i for i in files.result.get("iterates") or [] if i.get("role") in ("dpo", "search")]


def _round_pictures(files: RunFiles) -> Iterator[Picture]:
    found = search_iterates(files)
    if found and limits(files):
        caption = "The search: the multiplier tried in each round, and by how much the cost then passed the limit."
        yield Picture(figures.rounds(found, limits(files)), caption)


def _histograms(files: RunFiles) -> Iterator[Picture]:
    selected = answers_of(files, selected_names(files))
    reference = answers_of(files, ("reference",)) or list(files.reference_scores)
    for name in limits(files):
        left, right = _column(reference, f"cost_{name}"), _column(selected, f"cost_{name}")
        if left and right:
            rule = (files.result.get("constraints") or {}).get(name) or {}
            line = limits(files)[name] if rule.get("functional", "mean") == "mean" else None
            caption = (
                f"{name}: {figure(len(left))} responses of the reference, {figure(len(right))} of the selected policy."
            )
            yield Picture(figures.histogram(left, right, cost=name, limit=line), caption)


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [float(row[name]) for row in rows if is_figure(row.get(name))]


def selected_names(files: RunFiles) -> tuple[str, ...]:
    """Return the names that the selected policy may have in the table of answers."""
    return ("selected", str((files.result.get("selected") or {}).get("name")))


def answers_of(files: RunFiles, names: Sequence[str]) -> list[Row]:
    """Return the answers of the first of ``names`` that has any."""
    for name in names:
        found = [row for row in files.answers if row.get("policy") == name]
        if found:
            return found
    return []


def answer_pairs(files: RunFiles) -> list[dict[str, Any]]:
    """Return up to twenty prompts with the reference's and the selected policy's answer.

    The slices take turns, and within one the prompts' hashes decide: no look at the answers.
    """
    reference, selected = _first(answers_of(files, ("reference",))), _first(answers_of(files, selected_names(files)))
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


def _first(rows: Sequence[Row]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(str(row.get("prompt_id")), row)
    return found


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
    chosen = (files.result.get("selected") or {}).get("name")
    for iterate in files.result.get("iterates") or []:
        costs, errors = iterate.get("costs") or {}, iterate.get("errors") or {}
        yield {
            "name": str(iterate.get("name")),
            "selected": "selected" if iterate.get("name") == chosen else "",
            "multipliers": multiplier_label(iterate.get("multipliers")).removeprefix("λ = "),
            "normalised": multiplier_label(iterate.get("multipliers_normalised")).removeprefix("λ = "),
            "reward": measured(iterate.get("reward"), iterate.get("reward_error")),
            "costs": "; ".join(measured(costs.get(name), errors.get(name)) for name in limits(files)),
            "kl": figure(iterate.get("kl")),
            "slope": figure(iterate.get("slope_of_fit")),
            "steps": figure(iterate.get("steps")),
            "met": {True: "met", False: "broken"}.get(iterate.get("limits_met"), ""),
        }


def exact_rows(files: RunFiles) -> Iterator[dict[str, str]]:
    """Yield the exact optimum, the selected policy's true figures and every arm, for the exact section."""
    exact = files.exact
    entries = [("exact optimum", exact.get("optimum") or {}, "0", "met")]
    entries.append(("selected", exact.get("selected") or {}, figure(exact.get("gap")), ""))
    for arm in exact.get("arms") or []:
        met = {True: "met", False: "broken"}.get(arm.get("limits_met"), "")
        entries.append((str(arm.get("name")), arm, figure(arm.get("gap")), met))
    for name, row, gap, met in entries:
        costs = row.get("costs") or {}
        broken = [n for n, limit in limits(files).items() if is_figure(costs.get(n)) and costs[n] > limit]
        yield {
            "name": name,
            "reward": figure(row.get("reward")),
            "costs": "; ".join(figure(costs.get(constraint)) for constraint in limits(files)),
            "kl": figure(row.get("kl")),
            "objective": figure(row.get("objective")),
            "gap": gap,
            "met": met or ("broken" if broken else "met" if costs else ""),
        }
