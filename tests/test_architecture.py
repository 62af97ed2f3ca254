"""The floors of the house, read off the imports: nothing looks up, nothing goes in a circle, maths stands alone."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "dualign"
FLOORS: tuple[set[str], ...] = (
    {"errors", "hashing", "strict", "records", "config", "maths"},
    {"protocols", "runs", "certificate"},
    {"data", "models", "methods", "report"},
    {"train"},
    {"scorers", "worlds"},
    {"job"},
    {"face"},
    {"cli"},
)
"""From below; a file knows the floors under its own, its own folder, and on the ground floor its neighbours."""
FACE = {"__init__"}
"""The modules that make up the face."""
SIDE_DOORS = {"methods": {"train", "models", "worlds", "data", "runs"}, "report": {"protocols", "certificate", "torch"}}
"""What a folder may not know although it lies lower, or is no folder of ours."""
MOST_FILES = 165
HEAVY = {"torch", "transformers", "sklearn", "matplotlib", "pyarrow", "peft"}


def name_of(path: Path) -> str:
    """Return the dotted name of a module of ours."""
    return ".".join(("dualign", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, wherever in the file, also for types alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in whole)


ARROWS = {module: set(imports(path)) - {module} for module, path in MODULES.items()}


def room(module: str) -> str:
    """Return the folder, or the file right below the package, that a module of ours is in."""
    first = (module.split(".") + ["__init__"])[1]
    return "face" if first in FACE else first


def floor(name: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if name in rooms)


def test_every_room_has_a_floor_and_there_are_at_most_eight() -> None:
    assert {room(module) for module in MODULES} == set().union(*FLOORS)
    assert len(FLOORS) <= 8


@pytest.mark.parametrize("module", MODULES)
def test_nothing_looks_up(module: str) -> None:
    mine = room(module)
    for other in ARROWS[module] & set(MODULES):
        ground = floor(mine) == floor(room(other)) == 0
        assert room(other) == mine or ground or floor(room(other)) < floor(mine), f"{module} imports {other}"


def test_nothing_goes_in_a_circle_not_even_inside_a_function() -> None:
    left = {module: arrows & set(MODULES) for module, arrows in ARROWS.items()}
    while free := [
        module for module in left if not left[module] & set(left) or not any(module in known for known in left.values())
    ]:
        for module in free:
            del left[module]
    assert not left, f"circles: { ({module: sorted(arrows & set(left)) for module, arrows in left.items()}) }"


def test_no_two_rooms_need_each_other() -> None:
    known = {(room(a), room(b)) for a, arrows in ARROWS.items() for b in arrows & set(MODULES) if room(a) != room(b)}
    assert not {pair for pair in known if pair[::-1] in known}


@pytest.mark.parametrize("folder", SIDE_DOORS)
def test_a_method_knows_a_protocol_and_a_report_knows_files(folder: str) -> None:
    for module in (module for module in MODULES if room(module) == folder):
        seen = {room(name) if name in MODULES else name.split(".")[0] for name in ARROWS[module]}
        assert not seen & SIDE_DOORS[folder], module


def test_maths_imports_nothing_of_ours_and_touches_nothing_outside() -> None:
    for module in (module for module in MODULES if room(module) == "maths"):
        assert all(room(name) == "maths" for name in ARROWS[module] & set(MODULES)), module
        assert not ARROWS[module] & {"logging", "os", "time", "random", "pathlib"}, module
        assert "torch" not in ARROWS[module] or module.split(".")[-1] == "losses", module


def test_one_loop_goes_backward_and_the_house_is_of_a_size() -> None:
    backward = [module for module, path in MODULES.items() if ".backward(" in path.read_text()]
    assert len(backward) == 1, backward
    assert len(MODULES) <= MOST_FILES


@pytest.mark.parametrize(
    "command", [["--help"], ["plan", "--help"], ["certify", "--help"], ["report", "--help"], ["data", "--help"]]
)
def test_light_commands_import_nothing_heavy(command: list[str]) -> None:
    program = f"import sys; from dualign.cli.main import app\ntry: app({command!r})\nexcept SystemExit: pass\n"
    program += f"assert not {HEAVY!r} & set(sys.modules), 'heavy import'"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
