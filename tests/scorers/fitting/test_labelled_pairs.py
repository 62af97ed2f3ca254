"""From rows to labelled pairs: what wins, what is left out and why."""

import numpy as np
import pytest

from dualign.data.preferences import Answer, PreferenceRow
from dualign.errors import DataError
from dualign.records import Prompt, Turn
from dualign.scorers.fitting.inputs import answers, pairs_of, signs


def row(prompt, *texts, safer=None, better=None, safe=None, line=1):
    flags = safe or [None] * len(texts)
    given = tuple(Answer(text, safe=flag) for text, flag in zip(texts, flags, strict=True))
    return PreferenceRow(line, Prompt(prompt), given, better=better, safer=safer)


def said(found):
    return [(pair.prompt.text, pair.higher.text, pair.lower.text) for pair in found.pairs]


def test_the_less_safe_answer_of_a_cost_and_the_better_answer_of_a_reward_are_the_higher():
    rows = [row("p", "kind", "rude", safer=0, better=1, safe=[True, False])]
    assert said(pairs_of(rows, "cost")) == [("p", "rude", "kind")]
    assert said(pairs_of(rows, "reward")) == [("p", "rude", "kind")]
    assert said(pairs_of([row("p", "good", "poor", better=0)], "reward")) == [("p", "good", "poor")]


def test_only_a_cost_with_flags_everywhere_is_signed():
    flagged = row("p", "a", "b", safer=0, better=0, safe=[True, True])
    assert pairs_of([flagged], "cost").signed
    assert not pairs_of([flagged], "reward").signed
    assert not pairs_of([row("p", "a", "b", safer=0)], "cost").signed
    with pytest.raises(DataError, match="2 of 4 answers have a safety flag; all or none"):
        pairs_of([flagged, row("q", "a", "b", safer=0)], "cost")


def test_a_winner_of_many_beats_each_and_flags_alone_give_pairs():
    three = row("p", "a", "b", "c", safer=1)
    assert said(pairs_of([three], "cost")) == [("p", "a", "b"), ("p", "c", "b")]
    flags = row("p", "a", "b", "c", safe=[False, True, False])
    assert said(pairs_of([flags], "cost")) == [("p", "a", "b"), ("p", "c", "b")]


def test_single_answers_are_grouped_by_prompt():
    rows = [row("p", "a", safe=[True], line=1), row("q", "x", safe=[True], line=2), row("p", "b", safe=[False], line=3)]
    found = pairs_of(rows, "cost")
    assert (said(found), found.signed) == ([("p", "b", "a")], True)


def test_what_is_left_out_is_counted():
    rows = [
        row("p", "a", "b", safer=0),
        row("P ", "a", "b", safer=0),  # the same prompt but for case and space
        row("q", "a", "b", safer=0),
        row("q", "a", "b", safer=1),  # the other way round: neither counts
        row("r", "a", "a", safer=0),
        row("r", " ", "a", safer=0),
        row("r", "a", "b", better=0),
    ]
    found = pairs_of(rows, "cost")
    assert said(found) == [("p", "b", "a")]
    assert found.left_out == {
        "repeated": 1, "labelled both ways": 2, "identical answers": 1, "blank answer": 1, "no label": 1,
    }  # fmt: skip


def test_a_safer_answer_that_is_flagged_unsafe_beside_a_safe_one_is_left_out():
    wrong, both = row("p", "a", "b", safer=0, safe=[False, True]), row("q", "a", "b", safer=0, safe=[False, False])
    found = pairs_of([wrong, both], "cost")
    assert (said(found), found.left_out) == ([("q", "b", "a")], {"safer answer flagged unsafe": 1})


def test_the_same_words_after_other_turns_are_another_prompt():
    asked = Prompt("p", history=(Turn("user", "hello"), Turn("assistant", "hi")))
    again = PreferenceRow(2, asked, (Answer("a"), Answer("b")), safer=1)
    assert len(pairs_of([row("p", "a", "b", safer=0), again], "cost").pairs) == 2


def test_no_label_at_all_says_what_was_found():
    with pytest.raises(DataError, match=r"no pair says which answer is more helpful \(no label: 1\)"):
        pairs_of([row("p", "a", "b", safer=0)], "reward")


def test_signs_and_places_of_answers():
    assert signs([Answer("a", safe=False), Answer("b", safe=True), Answer("c")]).tolist() == [1, -1, 0]
    found = pairs_of([row("p", "a", "b", "c", safer=1), row("q", "a", "b", safer=0)], "cost")
    distinct = answers(found.pairs)
    assert [(prompt.text, text) for prompt, text in zip(*distinct.columns(), strict=True)] == [
        ("p", "a"), ("p", "b"), ("p", "c"), ("q", "b"), ("q", "a"),
    ]  # fmt: skip
    assert np.column_stack([distinct.higher, distinct.lower]).tolist() == [[0, 1], [2, 1], [3, 4]]
