"""The end of a run in a terminal: the verdict, what was reached, where to read on."""

from pathlib import Path

from dualign.errors import inert_lines
from dualign.report import sections
from dualign.report.reading import RunFiles, read_run


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
    from dualign.report.numbers import figure

    exact = files.exact
    parts = f"{figure(exact.get('gap_scores'))} learned scores, {figure(exact.get('gap_training'))} training"
    return f"Gap to the exact optimum: {figure(exact.get('gap'))} ({parts}). {exact.get('sentence') or ''}".strip()


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 96) or [""]
