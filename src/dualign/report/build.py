"""A run directory as one HTML file that needs nothing else: no script, no font, no image from outside."""

from pathlib import Path

from dualign.report import numbers, sections
from dualign.report.reading import RunFiles, read_run
from dualign.runs import store

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
        figure=numbers.figure,
        share=numbers.share,
        duration=numbers.duration,
        multiplier=lambda value: numbers.multiplier_label(value).removeprefix("λ = ") or numbers.NOTHING,
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
