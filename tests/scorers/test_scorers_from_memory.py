"""What a program has in memory as a scorer: a function, a scorer, a description; and what tells two functions apart."""

from functools import partial

import numpy as np
import pytest

from dualign.errors import ConfigError, ScorerError
from dualign.protocols import Scorer
from dualign.records import Prompt, Turn
from dualign.scorers.checked import CheckedScorer
from dualign.scorers.table import as_scorer, make_scorer

PROMPTS = [Prompt("a question"), Prompt("and", history=(Turn("user", "x"), Turn("assistant", "y")))]


def letters(prompts, responses):
    return [len(prompt) + len(response) / 10 for prompt, response in zip(prompts, responses, strict=True)]


def shifted(prompts, responses, by=0.0):
    return np.array(letters(prompts, responses)) + by


class Judge:
    def __call__(self, prompts, responses):
        return shifted(prompts, responses, by=1)

    def method(self, prompts, responses):
        return letters(prompts, responses)


@pytest.mark.parametrize("function", [letters, partial(shifted, by=0), Judge().method, lambda p, r: letters(p, r)])
def test_a_function_of_texts_is_a_scorer(function):
    scorer = as_scorer(function, direction="cost")
    assert isinstance(scorer, Scorer) and isinstance(scorer, CheckedScorer)
    assert scorer(PROMPTS, ["four", ""]).tolist() == [10.4, 3.0]
    assert scorer.direction == "cost" and scorer(PROMPTS[:0], []).shape == (0,)


def test_its_name_and_revision_are_those_of_its_source():
    scorer = as_scorer(letters, direction="cost")
    assert scorer.id == f"{__name__}:letters" and scorer.revision == as_scorer(letters, direction="reward").revision
    others = [shifted, Judge(), Judge().method, lambda p, r: letters(p, r), lambda p, r: shifted(p, r), len]
    revisions = {scorer.revision, *(as_scorer(other, direction="cost").revision for other in others)}
    revisions.add(as_scorer(letters, direction="cost", version="2").revision)
    assert len(revisions) == 8
    assert as_scorer(Judge(), direction="cost").id == f"{__name__}:Judge"
    assert as_scorer(partial(shifted, by=2), direction="cost").id == f"{__name__}:shifted"


def closing_over(by):
    return lambda p, r: shifted(p, r, by)


class Bound:
    def __init__(self, by):
        self.by = by

    def __call__(self, prompts, responses):
        return shifted(prompts, responses, self.by)


@pytest.mark.parametrize("make", [
    closing_over,
    Bound,
    lambda by: Bound(by).__call__,
    lambda by: partial(shifted, by=by),
    lambda by: lambda p, r, k=by: shifted(p, r, k),
])  # fmt: skip
def test_functions_that_carry_other_values_are_other_scorers(make):
    first, same, other = (as_scorer(make(by), direction="cost") for by in (1.0, 1.0, 2.0))
    assert first.revision == same.revision != other.revision
    assert (other(PROMPTS, ["a", "b"]) - first(PROMPTS, ["a", "b"])).tolist() == [1, 1]


def test_two_functions_of_one_line_are_two_scorers():
    pair = [lambda p, r: letters(p, r), lambda p, r: shifted(p, r)]
    assert len({as_scorer(one, direction="cost").revision for one in pair}) == 2


def test_the_same_name_with_another_source_is_another_scorer(tmp_path, monkeypatch):
    revisions = set()
    for number in range(2):
        path = tmp_path / f"m{number}.py"
        path.write_text(f"def harm(prompts, responses):\n    return [{number}.0] * len(responses)\n")
        space = {"__name__": "notebook"}
        exec(compile(path.read_text(), str(path), "exec"), space)
        revisions.add(as_scorer(space["harm"], direction="cost").revision)
    assert len(revisions) == 2


def test_scorers_and_descriptions_pass():
    made = make_scorer({"kind": "length"}, direction="cost")
    assert as_scorer(made, direction="cost") is made
    described = as_scorer({"kind": "length"}, direction="cost")
    assert (described.id, described.revision) == (made.id, made.revision)
    with pytest.raises(ConfigError, match="is a cost and was given as a reward; its sign would be wrong"):
        as_scorer(made, direction="reward")
    with pytest.raises(ConfigError, match="did you mean 'length'"):
        as_scorer({"kind": "lenght"}, direction="cost")
    with pytest.raises(ConfigError, match="given float; a function of"):
        as_scorer(0.5, direction="cost")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda p, r: [1.0], r"returned shape \[1\] for 2 responses"),
        (lambda p, r: [1.0, float("nan")], "nan for prompt 1"),
        (lambda p, r: ["a", "b"], "did not return numbers"),
        (lambda p, r: 1 / 0, "raised ZeroDivisionError: division by zero"),
    ],
)
def test_what_a_function_gets_wrong_is_an_error_and_never_a_number(function, says):
    with pytest.raises(ScorerError, match=says):
        as_scorer(function, direction="reward")(PROMPTS, ["a", "b"])
