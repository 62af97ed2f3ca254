"""The end of a run in a terminal: the verdict, what was reached, where to read on."""

from pathlib import Path

from dualign.errors import inert_lines
from dualign.report import reading, sections
from dualign.report.reading import RunFiles, read_run
from dualign.runs import store


def summary_text(run: Path) -> str:
    """Return a summary of ``run`` for a terminal, in lines of plain text without a trailing newline."""
    files = read_run(run)
    lines = [sections.verdict_word(files), *_wrapped(sections.verdict_sentence(files)), ""]
    if files.certificate.get("statement"):
        lines += [*_wrapped(str(files.certificate["statement"])), ""]
    lines += _table(files)
    if files.exact:
        lines += ["", *_wrapped(_exact_line(files))]
    warnings = files.result.get("warnings")
    for line in warnings if isinstance(warnings, list) else []:
        lines += ["", *_wrapped(f"Warning: {line}.")]
    if (run / "report.html").exists():
        lines += ["", f"report: {run / 'report.html'}"]
    return inert_lines("\n".join(lines))


def _table(files: RunFiles) -> list[str]:
    names = list(sections.limits(files))
    rows = [("policy", "λ", "reward", "; ".join(names) or "cost", "KL", "limits")]
    rows += [
        (("* " if r["selected"] else "  ") + r["name"], r["multipliers"], r["reward"], r["costs"], r["kl"], r["met"])
        for r in sections.iterate_rows(files)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _exact_line(files: RunFiles) -> str:
    from dualign.report.reading import figure

    exact = files.exact
    parts = f"{figure(exact.get('gap_scores'))} learned scores, {figure(exact.get('gap_training'))} training"
    return f"Gap to the exact optimum: {figure(exact.get('gap'))} ({parts}). {exact.get('sentence') or ''}".strip()


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 96) or [""]


REPORT = "report.html"


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
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dualign.report", "templates"),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        figure=reading.figure,
        share=reading.share,
        duration=reading.duration,
        multiplier=lambda value: reading.multiplier_label(value).removeprefix("λ = ") or reading.NOTHING,
    )
    # the drawings are our own markup; the names written into them were escaped when they were drawn
    drawn = {
        section: [{"svg": Markup(item.svg), "caption": item.caption} for item in items]
        for section, items in sections.pictures(files).items()
    }
    return environment.get_template("report.html.j2").render(
        files=files,
        word=sections.verdict_word(files),
        sentence=sections.verdict_sentence(files),
        certificate=files.certificate,
        chosen=(files.result.get("selected") or {}).get("name"),
        key=list(sections.key_figures(files)),
        limits=list(sections.limits(files)),
        limit_rows=list(sections.limit_rows(files)),
        pictures=drawn,
        iterates=list(sections.iterate_rows(files)),
        comparisons=sections.comparison_rows(files),
        exact_rows=list(sections.exact_rows(files)) if files.exact else [],
        pairs=sections.answer_pairs(files),
    )
