"""What the documents say is there: links, names, tests, commands, the generated page, the worked example, the tours."""

import importlib
import inspect
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dualign import errors
from dualign.maths.dual_rules import DUAL_RULES
from dualign.maths.exact import expectations, optimum
from dualign.methods.options import Settings
from dualign.methods.table import METHODS
from dualign.protocols import Policy, Problem
from dualign.records import Evaluation
from dualign.worlds.tabular import TabularBackend
from small_worlds import small_world

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "changelog.d").glob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAME = re.compile(r"`(dualign(?:\.\w+)+):([\w.]+)`")
TEST = re.compile(r"`(?:[\w/]+\.py::)?(test_\w+)`")
IGNORED = {"build", "dist", "models", "__pycache__"}
TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".j2", ".css", ".html", ".cfg", ".sh", ""}
# In pieces, so that this file does not hold what it forbids.
FORBIDDEN = ("/wo" + "rk/", "/tmp/ba" + "sh", "/ro" + "ot/", "/home" + "/", "pypi" + ".org", "pythonhosted" + ".org",
             "DESIGN" + ".md", "METHODS" + ".md", "METHODS" + " 1", "METHODS" + " 2", "DESIGN" + " 6")  # fmt: skip


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@cache
def known_tests() -> frozenset[str]:
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        found |= set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    return frozenset(found)


def text_files() -> list[Path]:
    """Return the files that git would carry; without git, those that are not in a hidden or ignored folder."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        names = [Path(name) for name in done.stdout.splitlines()]
    else:
        paths = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        names = [path for path in paths if not any(p.startswith(".") or p in IGNORED for p in path.parts[:-1])]
    return [ROOT / name for name in sorted(names) if (ROOT / name).is_file() and name.suffix in TEXT]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    broken = []
    for link in LINK.findall(text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        target, _, anchor = link.partition("#")
        there = (page.parent / target).resolve() if target else page
        inside = there.is_relative_to(ROOT)
        if not inside or not there.exists() or (anchor and anchor not in anchors(there.read_text())):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_name_imports_and_every_test_exists(page: Path) -> None:
    text = page.read_text()
    for module, attribute in NAME.findall(text):
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            fields = getattr(found, "__dataclass_fields__", {})
            assert hasattr(found, part) or part in fields, f"{page_id(page)}: {module}:{attribute} is not there"
            found = getattr(found, part, None)
    # A file is named as `tests/test_x.py`; a function as `test_x`.
    missing = set(TEST.findall(text)) - known_tests()
    assert not missing, f"{page_id(page)}: no such tests: {sorted(missing)}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_row_of_a_table_has_the_cells_of_its_heading(page: Path) -> None:
    width, prose = 0, re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for line in prose.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert not (width and cells) or cells == width, f"{page_id(page)}: {line}"
        width = cells


def test_the_mathematics_covers_the_tables() -> None:
    names = {f"{module}:{name}" for module, name in NAME.findall((ROOT / "docs/mathematics.md").read_text())}
    for module in ("exact", "dual", "dual_rules", "preference", "functionals", "bounds", "losses", "one_shot"):
        assert any(name.startswith(f"dualign.maths.{module}:") for name in names), module
    from dualign.maths.losses import LABELS, LOSSES

    assert {f"dualign.maths.losses:{name}" for name in (*LABELS, *LOSSES)} <= names
    text = (ROOT / "docs/mathematics.md").read_text()
    assert all(f"| `{name}`" in text for name in DUAL_RULES)


def exit_code_rows() -> dict[str, list[str]]:
    """Return code -> the cells of the row of architecture.md."""
    section = (ROOT / "docs/architecture.md").read_text().split("## Errors and exit codes")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in rows if row[0][0].isdigit()}


def test_the_exit_codes_are_those_of_the_package() -> None:
    rows = exit_code_rows()
    classes = [
        kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.DualignError)
    ]
    for kind in classes:
        if kind is not errors.DualignError:
            assert f"`{kind.__name__}`" in rows[str(kind.exit_code)][0], kind
    named = {name for row in rows.values() for name in re.findall(r"`(\w+Error)`", row[0])}
    assert named == {kind.__name__ for kind in classes} - {"DualignError"}
    for code in (errors.CERTIFIED, errors.NOT_CERTIFIED, errors.NONE_CERTIFIED, errors.INVALID_CERTIFICATE):
        assert str(code) in rows


def test_the_commands_of_the_table_are_those_of_the_command_line() -> None:
    from dualign.cli.main import app

    groups = {group.typer_instance.info.name for group in app.registered_groups if group.typer_instance is not None}
    known = {command.name for command in app.registered_commands} | groups
    rows = exit_code_rows()
    assert set(re.findall(r"`(\w+)`", rows["0"][2])) == known
    assert {name for row in rows.values() for name in re.findall(r"`(\w+)`", row[2])} <= known
    for page in PAGES:
        for name in re.findall(r"`dualign (\w[\w-]*)", page.read_text()):
            assert name in known, f"{page_id(page)}: no command {name}"


def test_the_config_page_is_what_make_docs_writes() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs/config_page.py"], capture_output=True, text=True, check=True)
    page = ROOT / "docs/config.md"
    assert page.exists(), "run make docs"
    assert page.read_text() == done.stdout, "docs/config.md is not up to date: run make docs"


def test_no_file_knows_a_machine() -> None:
    files = text_files()
    assert ROOT / "src/dualign/errors.py" in files and len(files) > 100
    found = {}
    for path in files:
        text = path.read_text(encoding="utf-8")
        words = [word for word in FORBIDDEN if word in text]
        found |= {page_id(path): words} if words else {}
    assert not found


def exact_problem(seed: int) -> Problem:
    """Return a finite world as what a method is given."""
    world = small_world(seed, beta=0.5)
    exact, backend = world.problem(), TabularBackend(world)

    def evaluate(policy: Policy) -> Evaluation:
        found = expectations(exact, policy.state)
        return Evaluation(found.reward, 0.0, found.costs, np.zeros(1), np.zeros(1), found.kl, 0.0, len(exact.reward))

    return Problem(backend, world.groups(), exact.limits, backend.reference, evaluate, exact.beta, 0)


def test_the_worked_example_is_a_method() -> None:
    method, row = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    space: dict[str, Any] = {"__name__": "doubling"}
    exec(compile(method, "CONTRIBUTING.md", "exec"), space)
    from dualign.methods.table import Method

    made = eval(row.strip(), {"Method": Method, "doubling": SimpleNamespace(**space)})
    best = optimum(small_world(8, beta=0.5).problem()).multipliers[0]
    run = made.run(exact_problem(8), Settings(DUAL_RULES["bracket"](), np.array([best / 3])))
    tried = [float(iterate.multipliers[0]) for iterate in run]
    assert tried == pytest.approx([0, best / 3, 2 * best / 3, 4 * best / 3])


def run_example(name: str) -> str:
    done = subprocess.run([sys.executable, str(ROOT / "examples" / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_example_finds_the_optimum_three_times() -> None:
    text = run_example("01_exact.py")
    found = re.findall(r"^(?:optimum|plan|C-DPO): +multiplier ([\d.]+)", text, re.MULTILINE)
    assert len(found) == 3
    assert [float(value) for value in found] == pytest.approx([float(found[0])] * 3, rel=0.01)
    assert "limits met: True" in text


@pytest.mark.slow
def test_the_second_example_trains_a_model_below_the_limit() -> None:
    text = run_example("02_small_model.py")
    rounds = [float(cost) for cost in re.findall(r"^round \d: .*cost ([\d.]+) ±", text, re.MULTILINE)]
    assert rounds[0] > 1.5 and min(rounds) < 0.5
    assert re.search(r"^kept: round [1-9]", text, re.MULTILINE)


def test_every_method_stands_on_its_page() -> None:
    page = (ROOT / "docs/methods.md").read_text()
    for name, method in METHODS.items():
        assert f"| `{name}`{' (reconstruction)' if method.reconstruction else ''} | {method.source} |" in page, name
