"""The arrows of the design, read off the imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "dualign"
LEAVES = {"errors", "records", "config", "strict", "hashing"}
FORBIDDEN = {
    "maths": {"dualign"},
    "methods": {"dualign.worlds.tabular", "dualign.train.transformer", "dualign.engine", "dualign.sampling",
                "dualign.scorers", "dualign.pipeline", "dualign.cli", "dualign.runs"},
    "report": {"dualign.pipeline", "dualign.backends", "dualign.engine", "dualign.methods", "dualign.sampling",
               "dualign.scorers", "dualign.worlds", "torch"},
    "runs": {"dualign.pipeline", "dualign.backends", "dualign.engine", "dualign.methods", "dualign.cli", "torch"},
    "engine": {"dualign.pipeline", "dualign.methods", "dualign.cli", "dualign.report", "dualign.worlds"},
    "scorers": {"dualign.pipeline", "dualign.methods", "dualign.cli", "dualign.backends"},
}  # fmt: skip
ALLOWED = {"maths": {"dualign.maths"}, "scorers": {"dualign.protocols"}}


def imports(path: Path) -> set[str]:
    """Return every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def under(name: str, roots: set[str]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_forbidden_arrow(folder: str) -> None:
    files = sorted((SOURCE / folder).rglob("*.py"))
    assert files
    for path in files:
        bad = {n for n in imports(path) if under(n, FORBIDDEN[folder]) and not under(n, ALLOWED.get(folder, set()))}
        assert not bad - {"dualign"}, f"{path.name} imports {sorted(bad)}"


@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_leaves_import_only_leaves(leaf: str) -> None:
    assert not {n for n in imports(SOURCE / f"{leaf}.py") if under(n, {"dualign"}) and n.split(".")[1] not in LEAVES}


def test_maths_knows_torch_in_losses_alone() -> None:
    assert all(p.name.startswith("losses") for p in (SOURCE / "maths").glob("*.py") if under("torch", imports(p)))
    assert not [
        p for p in (SOURCE / "maths").glob("*.py") if imports(p) & {"logging", "os", "time", "random", "pathlib"}
    ]


@pytest.mark.parametrize("command", [["--help"], ["plan", "--help"], ["certify", "--help"], ["report", "--help"]])
def test_light_commands_import_no_torch(command: list[str]) -> None:
    program = f"import sys; from dualign.cli.main import app\ntry: app({command!r})\nexcept SystemExit: pass\n"
    program += "assert not {'torch', 'transformers', 'sklearn', 'matplotlib'} & set(sys.modules), 'heavy import'"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
