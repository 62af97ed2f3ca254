"""Splits of prompts by hash: seeded, independent of file order, near duplicates on one side.

A prompt's place is SHA-256 of (seed, id), so that new prompts move no old one between *shares*. Prompts whose
word sets overlap by a Jaccard index of 0.8 or more are one cluster and share the least place among them; a new
prompt can move only the cluster that it joins. *Counts* take the first n in this order, so there the border moves.
Of conversations every turn is compared, the system's too.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction

from dualign.data.similar import DisjointSets, alike_in_every_part, similar_texts
from dualign.errors import DataError
from dualign.hashing import digest
from dualign.records import Prompt, normalise_prompt

NEAR = Fraction(4, 5)
"""Least Jaccard index of two word sets that makes near duplicates."""
WORD = re.compile(r"\w+")


def split(
    prompts: Sequence[Prompt],
    parts: Mapping[str, int | float],
    seed: int,
    *,
    clusters: Mapping[str, str] | None = None,
) -> dict[str, list[Prompt]]:
    """Return the prompts of each part, in hash order; prompts of no part are left out.

    Args:
        prompts: the prompts; of several with one id the first counts.
        parts: a float in (0, 1] is a share, an int >= 1 a count. Shares are taken first, by place;
            counts then take exactly n of the others, in hash order and in the order of ``parts``.
            A cluster that a count cuts is not continued in the next part.
        seed: another seed is another split.
        clusters: prompt id -> name of the cluster that is kept together; none: ``word_clusters`` of these prompts.

    Raises:
        DataError: a share or count is out of range, shares sum to more than 1, or prompts run out.
    """
    names = word_clusters(prompts) if clusters is None else clusters
    members: dict[str, list[tuple[float, str, Prompt]]] = defaultdict(list)
    for prompt in _distinct(prompts):
        members[names[prompt.id]].append((place(prompt, seed), prompt.id, prompt))
    ordered = sorted(map(sorted, members.values()))  # ids differ, so that no prompt is compared
    return _parted([(cluster[0][0], [prompt for _, _, prompt in cluster]) for cluster in ordered], parts)


def word_clusters(prompts: Sequence[Prompt]) -> dict[str, str]:
    """Return prompt id -> name of its cluster of near duplicates by words (single linkage)."""
    return _named(prompts, _alike_words)


def near_clusters(prompts: Sequence[Prompt]) -> dict[str, str]:
    """Return prompt id -> the smallest id among the prompts that it resembles, itself counted.

    Two prompts are together if their words overlap by 0.8, or if their characters do (``similar.similar_texts``), or if
    a chain of such pairs joins them; earlier turns count as well. A misspelt copy of a short question shares few whole
    words with it, a reordered one few runs of characters.
    """
    return _named(prompts, lambda texts: _alike_words(texts, *similar_texts(texts)))


def _named(prompts: Sequence[Prompt], alike: Callable[[Sequence[str]], list[list[int]]]) -> dict[str, str]:
    distinct = _distinct(prompts)
    clusters = [[distinct[index].id for index in cluster] for cluster in alike_in_every_part(distinct, alike)]
    return {prompt: min(cluster) for cluster in clusters for prompt in cluster}


def _parted(
    clusters: Sequence[tuple[float, list[Prompt]]], parts: Mapping[str, int | float]
) -> dict[str, list[Prompt]]:
    """Return the prompts of each part of clusters in hash order; shares are taken first, then counts."""
    shares, counts = _checked(parts)
    result: dict[str, list[Prompt]] = {name: [] for name in parts}
    rest = []
    for place, cluster in clusters:
        name = _share_at(place, shares)
        if name is None:
            rest.append(cluster)
        else:
            result[name].extend(cluster)
    remaining = iter(rest)
    for name, count in counts.items():
        result[name] = _first(remaining, count)
        if len(result[name]) < count:
            left = sum(len(cluster) for cluster in rest)
            raise DataError(
                f"split {name!r}: {count} prompts asked, {len(result[name])} left of {left} in {len(rest)} clusters "
                f"(near duplicates are not spread over two splits; data.cluster says what belongs together)"
            )
    return result


def without_leaks(
    parts: Mapping[str, Sequence[Prompt]], clusters: Mapping[str, str]
) -> tuple[dict[str, list[Prompt]], dict[str, list[Prompt]]]:
    """Return (parts kept, prompts dropped): a prompt with another of its cluster in a *later* part is dropped.

    For parts put together from several files: listed from training to the sealed part, so that what is
    measured is never thinned for the sake of what is trained on.

    Args:
        parts: name -> prompts.
        clusters: prompt id -> name of its cluster.
    """
    ranked = [(number, prompt) for number, members in enumerate(parts.values()) for prompt in members]
    last = {clusters[prompt.id]: number for number, prompt in ranked}
    kept: dict[str, list[Prompt]] = {name: [] for name in parts}
    dropped: dict[str, list[Prompt]] = {name: [] for name in parts}
    for number, (name, members) in enumerate(parts.items()):
        for prompt in members:
            (dropped if number < last[clusters[prompt.id]] else kept)[name].append(prompt)
    return kept, dropped


def place(prompt: Prompt, seed: int) -> float:
    """Return the prompt's place in [0, 1): 53 bits of SHA-256 of the seed and the prompt's id."""
    return (int(digest(f"{seed}\n{prompt.id}")[:16], 16) >> 11) / 2**53


def _checked(parts: Mapping[str, int | float]) -> tuple[dict[str, float], dict[str, int]]:
    shares: dict[str, float] = {}
    counts: dict[str, int] = {}
    for name, value in parts.items():
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            counts[name] = value
        elif isinstance(value, float) and 0 < value <= 1:
            shares[name] = value
        else:
            raise DataError(f"split {name!r}: {value!r}; a count (1, 2, ...) or a share in (0, 1] is needed")
    total = sum(shares.values())
    if total > 1 + 1e-9:
        raise DataError(f"splits: the shares sum to {total:g}; at most 1 is possible")
    return shares, counts


def _share_at(position: float, shares: Mapping[str, float]) -> str | None:
    """Return the share whose interval holds ``position``; shares that sum to 1 leave no gap by rounding."""
    border = 0.0
    for name, share in shares.items():
        border += share
        if position < border or border > 1 - 1e-9:
            return name
    return None


def _first(clusters: Iterator[list[Prompt]], count: int) -> list[Prompt]:
    """Return the first ``count`` prompts of the clusters, taking no cluster that is not needed."""
    taken: list[Prompt] = []
    while len(taken) < count and (cluster := next(clusters, None)) is not None:
        taken.extend(cluster)
    return taken[:count]


def _distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    first = {prompt.id: prompt for prompt in reversed(prompts)}
    return [first[name] for name in dict.fromkeys(prompt.id for prompt in prompts)]


def _words(text: str) -> frozenset[str]:
    text = normalise_prompt(text)
    return frozenset(WORD.findall(text)) or frozenset({text})


def _alike_words(texts: Sequence[str], *clusters: Sequence[int]) -> list[list[int]]:
    """Return the clusters of texts that are alike in their words, or that one of ``clusters`` holds together."""
    sets = DisjointSets(len(texts))
    same: dict[frozenset[str], int] = {}  # many may have the very same words, whose pairs are too many to look at
    for index, text in enumerate(texts):
        sets.join(same.setdefault(_words(text), index), index)
    places = list(same.values())
    for first, second in _near_pairs(list(same)):
        sets.join(places[first], places[second])
    for cluster in clusters:
        for index in cluster[1:]:
            sets.join(cluster[0], index)
    return sets.members()


def _near_pairs(sets: Sequence[frozenset[str]]) -> Iterator[tuple[int, int]]:
    """Yield the pairs with a Jaccard index of at least ``NEAR``, exactly, by prefix filtering.

    Sets that overlap by t = ceil(NEAR * size) words share one of their (size - t + 1) rarest words
    (Bayardo, Ma and Srikant 2007, section 4), so only those are looked up.
    """
    frequency = Counter(word for words in sets for word in words)
    index: dict[str, list[int]] = defaultdict(list)
    for current, words in enumerate(sets):
        needed = -(-NEAR.numerator * len(words) // NEAR.denominator)
        rarest = sorted(words, key=lambda word: (frequency[word], word))[: len(words) - needed + 1]
        for other in {candidate for word in rarest for candidate in index[word]}:
            shared = len(words & sets[other])
            if shared * NEAR.denominator >= NEAR.numerator * (len(words) + len(sets[other]) - shared):
                yield other, current
        for word in rarest:
            index[word].append(current)
