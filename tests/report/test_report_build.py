"""The report: made from files alone, complete, self-contained, and the same each time."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dualign.cli.train import report
from dualign.errors import DataError, MissingError
from dualign.report.build import (
    answer_pairs,
    build_report,
    comparison_rows,
    limit_rows,
    summary_text,
    verdict_sentence,
)
from dualign.report.reading import figure, interval, measured, multipliers, read_run
from dualign.runs import store
from report.run_fixture import make_run

SECTIONS = [
    "limits",
    "front",
    "rounds",
    "distributions",
    "comparisons",
    "exact",
    "answers",
    "data",
    "claims",
    "settings",
]


def section_names(html: str) -> list[str]:
    return re.findall(r'<section id="(\w+)">', html)


def test_every_section_is_there_and_the_verdict_comes_first(tmp_path: Path) -> None:
    path = build_report(make_run(tmp_path / "demo"))
    html = path.read_text()
    assert section_names(html) == SECTIONS
    body = html[html.index("<body>") :]
    assert body.index("harm is at most 0.1 (upper bound 0.087)") < body.index("<section")
    assert html.count("<svg") == 3
    assert html.count('class="exchange"') == 20
    assert store.verify(tmp_path / "demo") == []


def test_the_report_needs_nothing_else(tmp_path: Path) -> None:
    html = build_report(make_run(tmp_path, several=True)).read_text()

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in {"script", "link", "iframe", "img", "object"}
            for name, value in attrs:
                if name in {"src", "href", "xlink:href"}:
                    assert value
                    assert value.startswith("#")

    Links().feed(html)
    assert "@import" not in html


def test_equal_files_give_equal_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    first = build_report(run).read_bytes()
    assert build_report(run).read_bytes() == first


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("exact.json", {"exact"}),
        ("report/answers.parquet", {"answers", "distributions"}),
        ("report/comparisons.json", {"comparisons"}),
        ("data/summary.json", {"data"}),
    ],
)
def test_an_absent_file_omits_its_section_and_is_named(tmp_path: Path, name: str, gone: set[str]) -> None:
    run = make_run(tmp_path)
    (run / name).unlink()
    html = build_report(run).read_text()
    assert section_names(html) == [section for section in SECTIONS if section not in gone]
    assert f"left out: {name}." in html


def test_a_run_without_certificate_claims_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "certificate.json").unlink()
    assert verdict_sentence(read_run(run)) == "No certificate was made: nothing below is proof that a limit holds."
    assert [row["verdict"] for row in limit_rows(read_run(run))] == ["not tested"]
    assert '<p class="badge">NO CERTIFICATE</p>' in build_report(run).read_text()


@pytest.mark.parametrize("name", ["result.json", "exact.json", "report/answers.parquet", "config.yaml"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path)
    content = bytearray((run / name).read_bytes())
    content[len(content) // 2] ^= 4
    (run / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} is damaged"):
        build_report(run)


def test_no_result_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such run directory"):
        build_report(tmp_path / "absent")
    with pytest.raises(MissingError, match="holds no result.json"):
        build_report(tmp_path)


def test_the_verdict_names_the_limit_that_was_not_proved(tmp_path: Path) -> None:
    files = read_run(make_run(tmp_path, several=True, verdict="NOT CERTIFIED"))
    assert verdict_sentence(files).startswith(
        "The candidate policy is not certified: harm has the upper bound 0.118, above its limit 0.1, measured on"
    )
    assert "length" not in verdict_sentence(files)
    assert [row["verdict"] for row in limit_rows(files)] == ["not proved", "holds"]


def test_every_slice_of_every_split_is_counted(tmp_path: Path) -> None:
    make_run(tmp_path)
    html = build_report(tmp_path).read_text()
    assert '<td>tune · benign</td><td class="n">2\u202f000</td>' in html
    assert '<td>tune · harmful</td><td class="n">920</td>' in html


def test_only_intervals_without_zero_are_marked(tmp_path: Path) -> None:
    rows = comparison_rows(read_run(make_run(tmp_path)))
    assert [row["away_from_zero"] for row in rows] == [True, True, False]
    html = build_report(tmp_path).read_text()
    assert '<span class="yes">−0.35</span>' in html
    assert '<span class="yes">−0.013</span>' not in html


def test_shown_answers_are_chosen_by_hash_with_slices_in_turn(tmp_path: Path) -> None:
    pairs = answer_pairs(read_run(make_run(tmp_path)))
    assert [pair["slice"] for pair in pairs] == ["benign", "harmful"] * 10
    again = answer_pairs(read_run(make_run(tmp_path / "again", answer=" (longer)")))
    assert [pair["prompt"] for pair in again] == [pair["prompt"] for pair in pairs]


def test_figures_show_what_their_error_allows() -> None:
    assert figure(0.0871234) == "0.0871"
    assert figure(-0.00001) == "−1.00e−05"
    assert figure(0.0) == "0"
    assert figure(1200) == "1\u202f200"
    assert figure(None) == figure(float("nan")) == figure("x") == figure(True) == "–"
    assert measured(1.43712, 0.035) == "1.437 ± 0.069"
    assert measured(-0.5, 0.02) == "−0.500 ± 0.039"
    assert measured(-0.0004, 0.02) == "0.000 ± 0.039"
    assert interval(-0.041, 0.015) == "−0.0410 to 0.0150"
    assert multipliers({"harm": 0.5}) == "0.5"
    assert multipliers({"harm": 0.5, "length": 0.0101}) == "(0.5, 0.01)"


def test_the_summary_fits_a_terminal(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    text = summary_text(run)
    assert text.startswith("CERTIFIED\n")
    assert "* lambda-0.71" in text
    assert "Gap to the exact optimum: 0.018 (0.011 learned scores, 0.007 training)" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_command_prints_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    report(run, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"run": str(run), "verdict": "CERTIFIED", "report": str(run / "report.html")}


def test_reports_and_runs_leave_torch_and_drawing_alone() -> None:
    heavy = {"torch", "transformers", "matplotlib", "pyarrow", "jinja2"}
    program = f"import sys, dualign.report, dualign.runs.journal, dualign.runs.lock; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_report_imports_no_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    program = "import sys; from pathlib import Path; from dualign.report.build import build_report\n"
    program += "build_report(Path(sys.argv[1])); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
