"""What scorers see of an answer that reasons before it speaks."""

import pytest

from dualign.records import Prompt
from dualign.scorers.checked import checked, without_reasoning
from dualign.scorers.table import make_scorer


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("no reasoning", "no reasoning"),
        ("<think>a\nb</think>\n\nanswer", "answer"),
        ("<think>\n\n</think>\n\nanswer", "answer"),
        ("<think>never closed, and much of it", ""),
        ("", ""),
        # what a user would read is never hidden, wherever it stands
        ("first <think>a</think> then", "first  then"),
        ("<think>a</think>one <think>b</think>two", "one two"),
        ("<think>a</think>one <think>b", "one "),
        # the prompt opened it
        ("a, so b</think>\nanswer", "answer"),
        ("a</think>one<think>b</think> two", "one two"),
    ],
)
def test_parts_between_the_tags_are_left_out(text, left):
    assert without_reasoning(text) == left


def test_an_answer_that_never_leaves_the_reasoning_of_its_prompt_is_empty():
    assert without_reasoning("still at it", opened=True) == ""
    assert without_reasoning("done</think> yes", opened=True) == "yes"
    assert without_reasoning("<think>again</think>yes", opened=True) == "yes"


def test_a_scorer_behind_it_is_the_same_scorer_on_what_is_left():
    inner = make_scorer({"kind": "length", "unit": "characters"}, direction="cost")
    scorer = checked(inner, shown=without_reasoning)
    said = ["<think>long thoughts</think>four", "<think>cut", "seven.."]
    assert scorer([Prompt("a")] * 3, said).tolist() == [4, 0, 7]
    assert (scorer.id, scorer.revision, scorer.direction) == (inner.id, inner.revision, "cost")
