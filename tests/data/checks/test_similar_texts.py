"""Near-duplicates: the same pairs as brute force finds, in time that grows with the texts and not with their square."""

from itertools import combinations

import numpy as np
import pytest

from dualign.data.splits import (
    BAND_ROWS,
    BANDS,
    jaccard,
    minimal_hashes,
    shingles,
    similar_prompts,
    similar_texts,
)
from dualign.records import Prompt, Turn

LETTERS = "abcdefghijklmnopqrstuvwxyz "


def text(generator: np.random.Generator, length: int) -> str:
    return "".join(generator.choice(list(LETTERS), length))


def misspelt(generator: np.random.Generator, words: str, slips: int) -> str:
    letters = list(words)
    for place in generator.choice(len(letters), slips, replace=False):
        letters[place] = str(generator.choice(list("0123456789")))
    return "".join(letters)


def test_shingles_are_the_runs_of_five_characters() -> None:
    assert shingles("abcdefg").size == 3  # abcde, bcdef, cdefg
    assert shingles("aaaaaaaa").size == 1
    assert shingles("abc").size == shingles("").size == 1
    assert jaccard(shingles("abcdefg"), shingles("abcdefx")) == 2 / 4
    assert jaccard(shingles("Abc  DEF\n"), shingles("abc def")) == 1
    assert jaccard(shingles("ab"), shingles("abc")) == 0
    assert shingles("half \ud800 of one").size == 9


def test_shingles_of_characters_equal_sets_of_strings() -> None:
    generator = np.random.default_rng(1)
    for _ in range(50):
        first = "".join(generator.choice(list("ab c"), 30)).strip()
        second = "".join(generator.choice(list("ab c"), 25)).strip()
        first, second = " ".join(first.split()), " ".join(second.split())
        ours, theirs = ({words[i : i + 5] for i in range(max(1, len(words) - 4))} for words in (first, second))
        assert jaccard(shingles(first), shingles(second)) == pytest.approx(len(ours & theirs) / len(ours | theirs))


def test_minimal_hashes_agree_as_often_as_the_jaccard_index() -> None:
    generator = np.random.default_rng(2)
    base = text(generator, 400)
    first, second = shingles(base), shingles(misspelt(generator, base, 20))
    share = np.mean([
        np.mean(np.equal(*minimal_hashes([first, second], seed))) for seed in range(40)
    ])  # fmt: skip
    index = jaccard(first, second)
    assert 0.4 < index < 0.8
    error = (index * (1 - index) / (40 * BANDS * BAND_ROWS)) ** 0.5
    assert abs(share - index) < 4 * error


def test_clusters_equal_brute_force() -> None:
    generator = np.random.default_rng(3)
    texts = []
    for _ in range(60):
        base = text(generator, 120)
        texts += [base, *(misspelt(generator, base, int(slips)) for slips in generator.integers(1, 5, 3))]
    order = generator.permutation(len(texts))
    texts = [texts[index] for index in order]
    side = {member: number for number, cluster in enumerate(similar_texts(texts)) for member in cluster}
    sets = [shingles(words) for words in texts]
    near = [pair for pair in combinations(range(len(texts)), 2) if jaccard(sets[pair[0]], sets[pair[1]]) >= 0.8]
    assert 50 < len(near) < 360
    assert all(side[first] == side[second] for first, second in near)
    joined = {index: {index} for index in range(len(texts))}
    for first, second in near:
        union = joined[first] | joined[second]
        joined.update(dict.fromkeys(union, union))
    expected = {tuple(sorted(members)) for members in joined.values() if len(members) > 1}
    assert {tuple(cluster) for cluster in similar_texts(texts)} == expected


def test_order_of_texts_and_seed_change_no_cluster() -> None:
    generator = np.random.default_rng(4)
    bases = [text(generator, 100) for _ in range(40)]
    texts = [*bases, *(misspelt(generator, base, 1) for base in bases)]
    expected = [[number, number + 40] for number in range(40)]
    assert similar_texts(texts) == similar_texts(texts, seed=9) == expected
    backwards = similar_texts(texts[::-1])
    assert sorted(sorted(79 - member for member in cluster) for cluster in backwards) == expected


def test_templates_and_copies_are_one_cluster_each() -> None:
    """Every prompt of one template is like every other, so that buckets hold all of them."""
    texts = [f"Write a polite letter of three paragraphs to the landlord of flat {n}" for n in range(4000)]
    clusters = similar_texts(texts)
    assert len(clusters) == 1 and len(clusters[0]) == 4000
    assert similar_texts(["one and the same"] * 1000) == [list(range(1000))]


def test_nothing_is_like_nothing() -> None:
    assert similar_texts([]) == similar_texts(["alone"]) == []


def test_only_equal_texts_are_alike_at_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualign.data.splits.SIMILARITY", 1.0)
    assert similar_texts(["how are you?", "how are you", "How  are you?"]) == [[0, 2]]


def test_prompts_are_compared_in_every_part() -> None:
    system = Turn("system", " ".join(f"rule number {number} is to be kept" for number in range(40)))
    words = [f"{k}alpha {k}beta {k}gamma {k}delta {k}epsilon" for k in range(6)]
    questions = [Prompt(text, history=(system,)) for text in words]
    assert similar_prompts(questions) == []
    goes_on = [Prompt("go on", history=(system, Turn("user", text), Turn("assistant", "Yes"))) for text in words]
    assert similar_prompts(goes_on) == []
    assert similar_prompts([Prompt(f"{system.text} {text}") for text in words]) == [[0, 1, 2, 3, 4, 5]]
    copies = [Prompt(prompt.text + "s", history=prompt.history) for prompt in questions[1:3]]
    assert similar_prompts([*questions, *copies]) == [[1, 6], [2, 7]]
