"""The report of a run as one HTML file, and the end of a run in a terminal."""

import textwrap
from pathlib import Path
from typing import Any

from dualign.errors import inert_lines
from dualign.report import reading, sections
from dualign.report.reading import RunFiles, figure, read_run
from dualign.runs import store

REPORT = "report.html"


def summary_text(run: Path) -> str:
    """Return a summary of ``run`` for a terminal, in lines of plain text without a trailing newline."""
    files = read_run(run)
    lines = [sections.verdict_word(files), *_wrapped(sections.verdict_sentence(files)), ""]
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
        for r in sections.iterate_rows(files)
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
        word=sections.verdict_word(files),
        sentence=sections.verdict_sentence(files),
        certificate=files.certificate,
        chosen=files.selected.get("name"),
        key=list(sections.key_figures(files)),
        limits=list(files.limits),
        limit_rows=list(sections.limit_rows(files)),
        pictures=sections.pictures(files),
        iterates=list(sections.iterate_rows(files)),
        comparisons=sections.comparison_rows(files),
        exact_rows=list(sections.exact_rows(files)) if files.exact else [],
        pairs=sections.answer_pairs(files),
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
        figure=reading.figure,
        share=reading.share,
        duration=reading.duration,
        multiplier=lambda value: reading.multipliers(value) or reading.NOTHING,
    )
    return environment.get_template(template).render(**content)
