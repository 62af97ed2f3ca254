"""Splits that keep prompts together which are alike in their words or in their letters."""

import pytest

from dualign.data.splits import near_clusters, split
from dualign.errors import DataError
from dualign.records import Prompt, Turn

PARTS = {"train": 0.5, "test": 0.5}
WORDS = ["apple", "river", "candle", "window", "tiger", "marble", "ocean", "pepper", "garden", "silver"]


def unlike(number: int) -> str:
    digits = [int(digit) for digit in f"{number:04d}"]
    return " ".join(f"{WORDS[digit]}{place}{number}" for place, digit in enumerate(digits))


def split_clustered(prompts: list[Prompt], parts: dict[str, int | float], seed: int) -> dict[str, list[Prompt]]:
    return split(prompts, parts, seed, clusters=near_clusters(prompts))


def sides(parts: dict[str, list[Prompt]]) -> dict[str, str]:
    return {prompt.id: name for name, members in parts.items() for prompt in members}


def apart(pairs: list[tuple[Prompt, Prompt]], parts: dict[str, list[Prompt]]) -> int:
    side = sides(parts)
    return sum(side[first.id] != side[second.id] for first, second in pairs)


def test_misspelt_and_reordered_prompts_stay_on_one_side() -> None:
    misspelt = [(Prompt(f"Is {unlike(n)} nice? Say yes"), Prompt(f"Is {unlike(n)} nice? Say yess")) for n in range(100)]
    reordered = [
        (Prompt(f"{words} or {words[::-1]}"), Prompt(f"{words[::-1]} or {words}"))
        for words in (unlike(n + 500) for n in range(100))
    ]
    prompts = [prompt for pair in misspelt + reordered for prompt in pair]
    together = split_clustered(prompts, PARTS, 0)
    assert apart(misspelt, together) == apart(reordered, together) == 0
    assert sum(map(len, together.values())) == 400
    assert apart(misspelt, split(prompts, PARTS, 0)) > 20  # 7 of 9 words shared: below 0.8
    assert apart(reordered, split(prompts, PARTS, 0)) == 0


def test_prompts_that_are_unlike_are_split_as_before() -> None:
    prompts = [Prompt(unlike(n)) for n in range(300)]
    for parts in (PARTS, {"train": 100, "test": 50}, {"train": 0.3, "test": 20}):
        assert split_clustered(prompts, parts, 4) == split(prompts, parts, 4)


def test_a_new_prompt_moves_no_cluster_but_its_own() -> None:
    prompts = [Prompt(unlike(n)) for n in range(300)]
    before = sides(split_clustered(prompts, PARTS, 1))
    after = sides(split_clustered([*prompts[::-1], Prompt(f"{prompts[0].text}s"), Prompt("else")], PARTS, 1))
    assert sum(after[key] != side for key, side in before.items()) <= 1
    assert {key for key, side in before.items() if after[key] != side} <= {prompts[0].id}


def test_history_belongs_to_the_prompt() -> None:
    def asked(words: str) -> Prompt:
        return Prompt("Yes", history=(Turn("user", words), Turn("assistant", "Sure?")))

    prompts = [asked(f"{unlike(n)} {unlike(n + 7000)}") for n in range(40)]
    assert len(set(sides(split_clustered(prompts, PARTS, 0)).values())) == 2
    pairs = [(first, asked(f"{first.history[0].text}s")) for first in prompts]
    assert apart(pairs, split_clustered([prompt for pair in pairs for prompt in pair], PARTS, 0)) == 0


def test_mistakes_are_those_of_split() -> None:
    with pytest.raises(DataError, match=r"sum to 1\.2"):
        split_clustered([Prompt("a")], {"a": 0.7, "b": 0.5}, 0)
