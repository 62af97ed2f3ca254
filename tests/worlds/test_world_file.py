import copy
import json
from pathlib import Path

import numpy as np
import pytest

from dualign.errors import DataError, MissingError
from dualign.worlds.file import load_world, parse_world
from small_worlds import raw_world, write_world

TWO = {
    "beta": 0.5,
    "limits": {"harm": 0.2},
    "prompts": [
        {
            "prompt": "a",
            "weight": 3,
            "responses": [
                {"response": "x", "reference": 2, "reward": 1, "costs": {"harm": 4}},
                {"response": "y", "reference": 6, "reward": -1, "costs": {"harm": 0}},
            ],
        },
        {
            "prompt": "b",
            "weight": 1,
            "responses": [
                {"response": "x", "reference": 0.2, "reward": 1, "costs": {"harm": 1}},
                {"response": "y", "reference": 0.3, "reward": 2, "costs": {"harm": 2}},
                {"response": "z", "reference": 0.5, "reward": 3, "costs": {"harm": 3}},
            ],
        },
    ],
}


def test_shares_are_normalised_and_shorter_prompts_padded(tmp_path: Path) -> None:
    world = load_world(write_world(tmp_path, TWO))
    problem = world.problem()
    assert problem.prompt_weights.tolist() == [0.75, 0.25]
    np.testing.assert_allclose(np.exp(problem.log_reference), [[0.25, 0.75, 0], [0.2, 0.3, 0.5]], atol=1e-15)
    assert problem.costs[1, :, 0].tolist() == [1, 2, 3]
    assert problem.limits.tolist() == [0.2]
    assert [len(group.responses) for group in world.groups()] == [2, 3]
    assert world.groups()[0].weight == 0.75


def edited(path: list, value: object) -> str:
    raw = copy.deepcopy(TWO)
    place: object = raw
    for key in path[:-1]:
        place = place[key]  # type: ignore[index]
    if value is None:
        del place[path[-1]]  # type: ignore[attr-defined]
    else:
        place[path[-1]] = value  # type: ignore[index]
    return json.dumps(raw)


FIRST = ["prompts", 0, "responses", 0]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ([*FIRST, "reference"], 0, "prompts[0].responses[0].reference: must be a probability above 0"),
        ([*FIRST, "reference"], -1, "above 0"),
        ([*FIRST, "reference"], 5e-324, "stay above 0"),
        (["prompts", 1, "weight"], -0.1, "prompts[1].weight: must be a number above 0, got -0.1"),
        ([*FIRST, "reward"], float("nan"), "reward: must be a finite number, got nan"),
        ([*FIRST, "costs", "harm"], float("inf"), "costs.harm: must be a finite number"),
        ([*FIRST, "reward"], True, "must be a number, got True"),
        ([*FIRST, "reward"], 10**400, "finite"),
        ([*FIRST, "reward"], None, "'reward' is missing"),
        ([*FIRST, "rewrad"], 1, "unknown key 'rewrad'; did you mean 'reward'?"),
        ([*FIRST, "costs"], {"harn": 1}, "unknown key 'harn'; did you mean 'harm'?"),
        ([*FIRST, "costs"], {}, "'harm' is missing"),
        ([*FIRST, "response"], "y", "the same response"),
        (["prompts", 1, "prompt"], "a", "the same prompt"),
        (["prompts", 0, "responses"], [TWO["prompts"][0]["responses"][0]], "two responses or more, got 1"),
        (["prompts"], [], "at least one prompt"),
        (["limits"], {}, "at least one named limit"),
        (["limits", "harm"], "low", "limits.harm: must be a number, got 'low'"),
        (["beta"], 0, "beta: must be a number above 0"),
        (["bta"], 1, "did you mean 'beta'?"),
    ],
)
def test_every_fault_is_one_line_with_its_place(path: list, value: object, said: str) -> None:
    text = edited(path, value)
    with pytest.raises(DataError) as caught:
        parse_world(text, where="w.json")
    assert said in str(caught.value)
    assert str(caught.value).startswith("w.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"beta": 1, "beta": 2}', "[" * 100_000, "null"])
def test_what_is_no_world_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        parse_world(text, where="w")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="none.json"):
        load_world(tmp_path / "none.json")
    with pytest.raises(MissingError):
        load_world(tmp_path)
    (tmp_path / "latin").write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match="UTF-8"):
        load_world(tmp_path / "latin")


def test_random_worlds_are_valid_problems() -> None:
    for seed in range(20):
        problem = parse_world(json.dumps(raw_world(seed, constraints=2)), where="w").problem()
        np.testing.assert_allclose(np.exp(problem.log_reference).sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("old", ['"a"', '"x"', '"harm"'])
def test_half_of_a_character_is_refused(old: str) -> None:
    with pytest.raises(DataError, match="half of a character"):
        parse_world(json.dumps(TWO).replace(old, '"\\ud800"'), where="w")
