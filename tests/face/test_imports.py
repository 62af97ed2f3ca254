"""``import dualign`` is light, and no module takes the place of a function of the same name."""

import subprocess
import sys

import pytest

import dualign

LIGHT = """
import sys
import dualign
{body}
heavy = {{"torch", "transformers", "sklearn", "pyarrow", "matplotlib", "peft", "pandas"}} & set(sys.modules)
assert not heavy, heavy
"""
EVERY = """
import importlib, pkgutil, types
import dualign
{before}
for module in pkgutil.walk_packages(dualign.__path__, "dualign."):
    importlib.import_module(module.name)
{after}
"""
CHECK = """
for name in dualign.__all__:
    found = getattr(dualign, name)
    assert not isinstance(found, types.ModuleType), name
    assert name.startswith("__") or callable(found), name
assert dualign.upper_bound([], cap=1, delta=0.05) == float("inf")
assert dualign.certify([-1.0] * 99, limit=0, cap=1).verdict == "CERTIFIED"
"""


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "body",
    [
        "",
        "assert dualign.upper_bound([], cap=1, delta=0.05) == float('inf')",
        "assert dualign.e_value([0.1] * 9, limit=0.5, cap=1, delta=0.05) > 1",
        "assert dualign.certify([-1.0] * 99, limit=0, cap=1).verdict == 'CERTIFIED'",
        "rows = [{'prompt': p, 'reward': k, 'cost': k} for p in 'ab' for k in range(3)]\n"
        "assert dualign.plan(rows, 1, beta=1).feasible",
    ],
)
def test_the_light_functions_import_nothing_heavy(body: str) -> None:
    run(LIGHT.format(body=body))


@pytest.mark.parametrize("order", ["before", "after"])
def test_functions_are_functions_in_either_order_of_imports(order: str) -> None:
    run(EVERY.format(**{"before": "", "after": "", order: CHECK}) + CHECK)


def test_what_is_listed_is_there_and_nothing_else_is_promised() -> None:
    assert len(set(dualign.__all__)) == len(dualign.__all__)
    assert dir(dualign) == sorted(dualign.__all__)
    with pytest.raises(AttributeError, match="no attribute 'certfy'"):
        _ = dualign.certfy
