"""Statistics of preference data against numbers counted by hand."""

import pytest

from dualign.data.checks.check import check_rows
from dualign.data.checks.reading import Limits
from dualign.data.checks.statistics import statistics
from dualign.data.preferences import Answer, PreferenceRow
from dualign.records import Prompt


def row(
    line: int, prompt: str, *, flags: str, better: int | None, safer: int | None, split: str = "a"
) -> PreferenceRow:
    """Return a row whose answers are S and U by their flags: "SU" is a safe one and an unsafe one."""
    answers = tuple(
        Answer(
            f"answer {number} " + "word " * number,
            safe=flag == "S",
            severity=0 if flag == "S" else 2,
            categories=frozenset() if flag == "S" else frozenset({"Violence", "Drugs"} if number else {"Drugs"}),
        )
        for number, flag in enumerate(flags)
    )
    return PreferenceRow(line, Prompt(prompt), answers, better, safer, split)


ROWS = [
    row(1, "first prompt", flags="SU", better=0, safer=0),
    row(2, "second prompt of five words", flags="SU", better=1, safer=0),
    row(3, "third", flags="SS", better=1, safer=1),
    row(4, "fourth", flags="UU", better=None, safer=0),
    row(5, "fifth", flags="SU", better=0, safer=1),
    row(6, "first prompt", flags="SU", better=0, safer=0),
    row(7, "first prompt", flags="SU", better=1, safer=0, split="b"),
]


def test_figures_by_hand() -> None:
    _, context, sound = check_rows(ROWS, limits=Limits(8))
    figures = statistics(sound, context)
    assert figures["prompts"] == 5
    assert figures["labels"] == {
        "flagged_rows": 7, "safe": 1 / 7, "mixed": 5 / 7, "unsafe": 1 / 7, "judged_answers": 0, "desirable": None,
        "better_given": 6, "safer_given": 7,
        "better_and_safer_agree": 3 / 6, "contradictory": 1,
    }  # fmt: skip
    assert figures["categories"] == {"Drugs": 7, "Violence": 6}
    assert figures["severity"] == {"0": 7, "2": 7}
    assert figures["splits"] == {"rows": {"a": 6, "b": 1}, "prompts": {"a": 5, "b": 1}, "leaking_prompts": 1}
    # Row 7 says otherwise than rows 1 and 6; row 6 says the same as row 1.
    same = {"distinct_rows": 6, "repeated_rows": 1, "rows_labelled_both_ways": 3, "replies_labelled_both_ways": 0,
            "replies_flagged_both_ways": 0}  # fmt: skip
    assert figures["duplicates"] == same


def test_lengths_by_hand() -> None:
    _, context, sound = check_rows(ROWS, limits=Limits(8))
    tokens = statistics(sound, context)["tokens"]
    # Prompts have 2, 5, 1, 1, 1, 2, 2 words, and words x 1.3 rounded up are 3, 7, 2, 2, 2, 3, 3 tokens.
    assert tokens["prompt"] == pytest.approx(
        {"min": 2, "q25": 2, "median": 3, "q75": 3, "q95": 3 + 0.7 * 4, "max": 7, "mean": 22 / 7}
    )
    # Answers have 2 and 3 words: 3 and 4 tokens. Only the second row has more than 8 in all.
    assert (tokens["answer"]["min"], tokens["answer"]["max"], tokens["answer"]["mean"]) == (3, 4, 3.5)
    assert (tokens["truncated_rows"], tokens["truncated_share"]) == (1, 1 / 7)


def test_single_answers_have_flags_and_no_winners() -> None:
    rows = [
        PreferenceRow(1, Prompt("a"), (Answer("x", safe=True),)),
        PreferenceRow(2, Prompt("a"), (Answer("x", safe=False),)),
        PreferenceRow(3, Prompt("a"), (Answer("y", safe=False),)),
    ]
    faults, context, sound = check_rows(rows)
    assert {(fault.rule, fault.line) for fault in faults} == {("flag both ways", 1), ("flag both ways", 2)}
    figures = statistics(sound, context)
    assert (figures["labels"]["safe"], figures["labels"]["mixed"], figures["labels"]["unsafe"]) == (1 / 3, 0, 2 / 3)
    assert figures["labels"]["better_and_safer_agree"] is None
    assert figures["duplicates"]["replies_flagged_both_ways"] == 1


def test_no_rows_have_no_figures() -> None:
    _, context, sound = check_rows([])
    figures = statistics(sound, context)
    assert figures["tokens"]["prompt"] is None and figures["tokens"]["truncated_share"] is None
    assert figures["labels"]["safe"] is None and figures["prompts"] == 0


def test_near_duplicate_prompts_are_counted() -> None:
    words = "Please explain how the tides of the northern sea come about"
    rows = [row(number, text, flags="SU", better=0, safer=0) for number, text in enumerate([words, f"{words}?", "Hm"])]
    _, context, sound = check_rows(rows)
    assert statistics(sound, context)["near_duplicates"] == {"similarity": 0.8, "clusters": 1, "prompts": 2}
