"""Splits: disjoint, seeded, stable under additions, near duplicates on one side."""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from dualign.data.splits import near_clusters, place, split, without_leaks, word_clusters
from dualign.errors import DataError
from dualign.records import Prompt, Turn


def many(n, offset=0):
    return [Prompt(f"alpha{i} beta{i} gamma{i}") for i in range(offset, offset + n)]


def near_duplicates(prompts):
    """The clusters of two or more prompts that are alike in their words, in order of appearance."""
    names, members = word_clusters(prompts), {}
    for prompt in {prompt.id: prompt for prompt in prompts}.values():
        members.setdefault(names[prompt.id], []).append(prompt)
    return [cluster for cluster in members.values() if len(cluster) > 1]


def leaks(parts):
    return without_leaks(parts, word_clusters([prompt for members in parts.values() for prompt in members]))


def ids(prompts):
    return {prompt.id for prompt in prompts}


def test_added_prompts_move_none_between_shares():
    parts = {"train": 0.5, "tune": 0.2, "report": 0.3}
    old = split(many(500), parts, 1)
    new = split([*many(500, 500), *reversed(many(500))], parts, 1)
    for name in parts:
        assert ids(old[name]) <= ids(new[name])
    assert sum(map(len, new.values())) == 1000


def test_shares_are_shares_and_seeds_differ():
    parts = {"a": 0.25, "b": 0.75}
    sizes = [len(split(many(2000), parts, seed)["a"]) for seed in range(5)]
    error = (2000 * 0.25 * 0.75) ** 0.5
    assert all(abs(size - 500) < 4 * error for size in sizes)
    both = ids(split(many(2000), parts, 0)["a"]) & ids(split(many(2000), parts, 1)["a"])
    assert abs(len(both) - 125) < 60


def test_places_are_uniform():
    places = np.array([place(prompt, 3) for prompt in many(4000)])
    assert abs(places.mean() - 0.5) < 4 * (1 / 12 / 4000) ** 0.5
    assert places.min() >= 0 and places.max() < 1


def test_counts_are_exact_disjoint_and_independent_of_order():
    parts = {"train": 100, "calibration": 150}
    first, second = split(many(300), parts, 0), split(many(300)[::-1], parts, 0)
    assert first == second
    assert [len(part) for part in first.values()] == [100, 150]
    assert not ids(first["train"]) & ids(first["calibration"])
    larger = split(many(300), {"train": 120}, 0)["train"]
    assert larger[:100] == first["train"]


def test_shares_and_counts_mix():
    parts = split(many(1000), {"train": 0.5, "report": 50}, 0)
    assert ids(parts["train"]) == ids(split(many(1000), {"train": 0.5}, 0)["train"])
    assert len(parts["report"]) == 50 and not ids(parts["train"]) & ids(parts["report"])


def jaccard(first, second):
    return Fraction(len(first & second), len(first | second))


def test_near_duplicates_equal_brute_force():
    generator = np.random.default_rng(0)
    prompts = [Prompt(" ".join(f"w{i}" for i in sorted(set(generator.integers(0, 9, 7))))) for _ in range(120)]
    distinct = list({prompt.id: prompt for prompt in prompts}.values())
    side = {prompt.id: number for number, cluster in enumerate(near_duplicates(distinct)) for prompt in cluster}
    near = 0
    for first, second in combinations(distinct, 2):
        if jaccard(set(first.text.split()), set(second.text.split())) >= Fraction(4, 5):
            near += 1
            assert side[first.id] == side[second.id]
    assert near > 20
    for cluster in near_duplicates(distinct):
        words = [set(prompt.text.split()) for prompt in cluster]
        assert all(any(jaccard(a, b) >= Fraction(4, 5) for b in words if b is not a) for a in words)


def test_near_duplicates_stay_on_one_side():
    pairs = [(Prompt(f"a{i} b{i} c{i} d{i} e{i}"), Prompt(f"a{i} b{i} c{i} d{i}")) for i in range(100)]
    parts = split([prompt for pair in pairs for prompt in pair], {"x": 0.5, "y": 0.5}, 0)
    side = {prompt.id: name for name, members in parts.items() for prompt in members}
    assert all(side[first.id] == side[second.id] for first, second in pairs)
    every = [prompt for pair in pairs for prompt in pair]
    alone = split(every, {"x": 0.5, "y": 0.5}, 0, clusters={prompt.id: prompt.id for prompt in every})
    side = {prompt.id: name for name, members in alone.items() for prompt in members}
    assert 20 < sum(side[first.id] != side[second.id] for first, second in pairs) < 80


def test_a_cluster_cut_by_a_count_does_not_go_on_in_the_next_part():
    cluster = [Prompt("a b c d e"), Prompt("a b c d e f"), Prompt("a b c d")]
    parts = split([*cluster, *many(5)], {"x": 1, "y": 5}, 0)
    assert not (ids(parts["x"]) & ids(cluster)) or not (ids(parts["y"]) & ids(cluster))


def test_leaks_are_dropped_from_the_earlier_part():
    near, copy = Prompt("how do i bake a cake"), Prompt("how do i bake a cake today")
    kept, dropped = leaks({"train": [near, Prompt("other words")], "report": [copy]})
    assert [prompt.text for prompt in kept["train"]] == ["other words"]
    assert kept["report"] == [copy] and dropped == {"train": [near], "report": []}


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"a": 0.7, "b": 0.5}, "sum to 1.2"),
        ({"a": 0}, "'a'"),
        ({"a": -1}, "'a'"),
        ({"a": 1.5}, "'a'"),
        ({"a": True}, "'a'"),
        ({"a": 11}, "11 prompts asked, 10 left"),
    ],
)
def test_impossible_splits(parts, says):
    with pytest.raises(DataError, match=says):
        split(many(10), parts, 0)


def test_prompts_without_words_are_not_near_each_other():
    assert near_duplicates([Prompt("?!"), Prompt("..."), Prompt("?! ")]) == []


def talk(last, *before, system=""):
    """A conversation: the turns before the last, from the user's to the assistant's, below a system turn."""
    opening = (Turn("system", system),) if system else ()
    turns = (Turn("assistant" if k % 2 else "user", text) for k, text in enumerate(before))
    return Prompt(last, history=(*opening, *turns))


def word(k):
    return f"w{k}a w{k}b w{k}c w{k}d w{k}e w{k}f"


SHARED = " ".join(f"rule{k}" for k in range(100))
CASES = {
    "the last turn alone is shared": ([talk("please go on", word(k), "Yes.") for k in range(12)], 12),
    "so is a long system turn": ([talk("please go on", word(k), "Yes.", system=SHARED) for k in range(12)], 12),
    "the system turn alone is shared": ([talk(word(k), system=SHARED) for k in range(12)], 12),
    "the system turns differ": ([talk("please go on", system=word(k)) for k in range(12)], 12),
    "the dialogue is shared, the question not": ([talk(word(k), word(99), word(98)) for k in range(12)], 12),
    "one word of the dialogue differs": ([talk("please go on", word(7) + f" {k}x", "Yes.") for k in range(12)], 1),
    "one word of the last turn differs": (
        [talk(f"{word(7)} {word(8)} {k}x", "Hi", "Yes.", system=SHARED) for k in range(12)],
        1,
    ),
    "one word of the system turn differs": ([talk(word(7), system=f"{SHARED} {k}") for k in range(12)], 1),
    "with and without a short greeting": (
        [Prompt(f"{word(7)} {word(8)}"), talk(f"{word(7)} {word(8)}", "Hi", "Yes")],
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_near_duplicates_are_told_by_the_whole_conversation(name):
    prompts, clusters = CASES[name]
    near = [len(cluster) for cluster in near_duplicates(prompts)]
    assert near == ([] if clusters == len(prompts) else [len(prompts)])
    kept, dropped = leaks({"train": prompts[1:], "report": prompts[:1]})
    assert len(dropped["train"]) == (0 if clusters > 1 else len(prompts) - 1)
    sides = split(prompts, {"x": 0.5, "y": 0.5}, 0, clusters=near_clusters(prompts))
    assert (min(map(len, sides.values())) == 0) == (clusters == 1)
    assert sum(map(len, sides.values())) == len(prompts)


def test_one_short_prompt_removes_no_conversation_that_ends_like_it():
    talks = [talk("Please go on.", word(k), "Yes.") for k in range(36)]
    kept, dropped = leaks({"train": talks, "calibration": [Prompt("please go on")]})
    assert (len(kept["train"]), dropped["train"]) == (36, [])


def test_many_prompts_of_the_same_words_take_no_time_that_grows_with_their_square():
    prompts = [talk("go on", f"{k}a {k}b", "x") for k in range(6000)]
    assert near_duplicates(prompts) == []
