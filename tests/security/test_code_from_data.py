"""Code runs where the user names it: on the command line or in a config, and nowhere else."""

import ast
import json
import sys
from pathlib import Path

import pytest

from command_line import dualign

SOURCE = Path(__file__).parents[2] / "src" / "dualign"
BUILTINS = {"exec", "eval", "compile", "__import__"}
FUNCTIONS = {"import_module", "run_path", "run_module", "spec_from_file_location"}


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """Return the name of a callable whose module notes that it was imported."""
    (tmp_path / "trap_of_a_test.py").write_text("def score(prompts, responses):\n    return [1.0] * len(prompts)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trap_of_a_test", raising=False)
    return "trap_of_a_test:score"


def test_rows_that_name_a_callable_are_text_and_the_command_line_is_not(trap, tmp_path):
    spec = {"kind": "callable", "target": trap}
    row = {"prompt": trap, "response": json.dumps(spec), "scorer": trap, "revision": trap, **spec, "spec": spec}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    given = ["score", tmp_path / "rows.jsonl", "--scorer"]
    assert dualign(*given, "length", "--out", tmp_path / "1.jsonl").code == 0
    assert "trap_of_a_test" not in sys.modules
    # The control: the same name, typed by the user, does run.
    assert dualign(*given, trap, "--out", tmp_path / "2.jsonl").code == 0
    assert "trap_of_a_test" in sys.modules


def called(tree):
    """Return the names of called builtins and the last parts of called attributes."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    return names & (BUILTINS | FUNCTIONS) | {call.attr for call in calls if isinstance(call, ast.Attribute)} & FUNCTIONS


def test_one_file_of_the_package_turns_a_name_into_code():
    loading = {
        path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if called(ast.parse(path.read_text()))
    }
    assert loading == {"scorers/checked.py"}
