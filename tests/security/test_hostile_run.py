"""What a model or a file says is text: never markup, never a path out of the run, never terminal control."""

import json
from pathlib import Path

import pytest

from dualign.errors import DataError
from dualign.report.build import build_report, summary_text
from dualign.runs import store
from report.run_fixture import HOSTILE, make_run


def test_markup_in_an_answer_comes_out_as_text(tmp_path: Path) -> None:
    html = build_report(make_run(tmp_path, answer=HOSTILE)).read_text()
    assert "<script" not in html.lower()
    assert html.count("&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;") == 20


def rename_everything(run: Path, name: str) -> None:
    """Give the constraint, the policies, the notes and the scorers a hostile name."""
    for file in ("result.json", "certificate.json", "report/comparisons.json", "exact.json", "data/summary.json"):
        text = (run / file).read_text()
        for word in ("harm", "lambda-0.71", "soft", "betting", "CERTIFIED"):
            text = text.replace(word, word + json.dumps(name)[1:-1])
        store.write_text(run / file, text, run=run)
    columns = store.read_table(run / "report/answers.parquet")
    columns[f"cost_harm{name}"] = columns["cost_harm"]
    store.write_table(run / "report/answers.parquet", columns, run=run)


@pytest.mark.parametrize("name", [HOSTILE, "</title><script>x", "]]><script>x</script>", "$\\frac$ <b onload=x>"])
def test_markup_in_names_is_text_in_tables_and_drawings(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path)
    rename_everything(run, name)
    html = build_report(run).read_text()
    assert "<script" not in html.lower()
    assert "<b onload" not in html
    drawing = html[html.index("<svg") : html.index("</svg>")]
    assert "harm" in drawing
    assert "&lt;" in drawing


def test_the_page_forbids_scripts(tmp_path: Path) -> None:
    assert "default-src 'none'; style-src 'unsafe-inline'" in build_report(make_run(tmp_path)).read_text()


def test_names_drive_no_terminal(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    rename_everything(run, "\x1b[2J\x07")
    assert "\x1b" not in summary_text(run)
    assert "\x07" not in summary_text(run)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../b", "..\\outside"])
def test_a_manifest_that_leaves_the_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "MANIFEST.json").write_text(json.dumps({"schema": 1, "files": {name: "0" * 64}}))
    with pytest.raises(DataError, match="lies outside the run directory"):
        store.verify(tmp_path)


def test_a_link_is_not_the_file_it_points_to(tmp_path: Path) -> None:
    store.write_text(tmp_path / "x", "same", run=tmp_path)
    (tmp_path / "y").write_text("same")
    (tmp_path / "x").unlink()
    (tmp_path / "x").symlink_to(tmp_path / "y")
    assert "x is damaged" in [str(fault) for fault in store.verify(tmp_path)]


def test_deeply_nested_json_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match="not JSON"):
        store.read_json(tmp_path / "x.json")
