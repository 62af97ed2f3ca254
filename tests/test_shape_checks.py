"""Shapes in signatures are not ornaments: a call of other shapes fails in this suite."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from dualign.maths.losses import clipped_policy_loss, dpo, leave_one_out_loss, soft

ROOT = Path(__file__).parent.parent
OPTION = "--jaxtyping-packages="


def test_sides_of_unequal_length_are_refused() -> None:
    assert dpo(torch.zeros(3), torch.zeros(3), beta=1).shape == (3,)
    with pytest.raises(TypeCheckError, match="parameters of dualign.maths.losses.dpo"):
        dpo(torch.zeros(3), torch.zeros(1), beta=1.0)  # would be broadcast without a word
    with pytest.raises(TypeCheckError):
        dpo(torch.zeros(3, 1), torch.zeros(3, 1), beta=1.0)


def test_arrays_whole_numbers_and_axes_in_the_wrong_place_are_refused() -> None:
    with pytest.raises(TypeCheckError):
        soft(np.zeros(3), torch.Generator())  # type: ignore[arg-type]
    with pytest.raises(TypeCheckError):
        soft(torch.zeros(3, dtype=torch.int64), torch.Generator())
    with pytest.raises(TypeCheckError):
        leave_one_out_loss(torch.zeros(2, 4), torch.zeros(4, 2))
    ones = torch.ones(2, 5)
    with pytest.raises(TypeCheckError):
        clipped_policy_loss(ones, ones, ones, ones[:, :4], clip=0.2)


def test_every_module_that_states_shapes_is_checked() -> None:
    stating = {
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        for path in (ROOT / "src").rglob("*.py")
        if re.search(r"^\s*(from|import) jaxtyping\b", path.read_text(), re.MULTILINE)
    }
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]
    (named,) = [option.removeprefix(OPTION) for option in options if option.startswith(OPTION)]
    assert {*stating, "shape_checks.check"} == set(named.split(","))
