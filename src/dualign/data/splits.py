"""Splits of prompts by hash: seeded, independent of file order, near duplicates on one side.

A prompt's place is SHA-256 of (seed, id), so that new prompts move no old one between *shares*. Prompts whose
word sets overlap by a Jaccard index of 0.8 or more are one cluster and share the least place among them; a new
prompt can move only the cluster that it joins. *Counts* take the first n in this order, so there the border moves.
Of conversations every turn is compared, the system's too.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from dualign.data.similar import SIMILARITY, DisjointSets, alike_in_every_part, similar_texts
from dualign.errors import DataError
from dualign.records import Prompt, normalise_prompt

NEAR = Fraction(4, 5)
"""Least Jaccard index of two word sets that makes near duplicates."""

WORD = re.compile(r"\w+")


def split(
    prompts: Sequence[Prompt],
    parts: Mapping[str, int | float],
    seed: int,
    *,
    near: Fraction | None = NEAR,
) -> dict[str, list[Prompt]]:
    """Return the prompts of each part, in hash order; prompts of no part are left out.

    Args:
        prompts: the prompts; of several with one id the first counts.
        parts: a float in (0, 1] is a share, an int >= 1 a count. Shares are taken first, by place;
            counts then take exactly n of the others, in hash order and in the order of ``parts``.
            A cluster that a count cuts is not continued in the next part.
        seed: another seed is another split.
        near: least Jaccard index of near duplicates; none: only identical prompts are kept together
            (for prompts made from templates, which all resemble each other).

    Raises:
        DataError: a share or count is out of range, shares sum to more than 1, or prompts run out.
    """
    distinct = _distinct(prompts)
    groups = _clusters(distinct, near) if near is not None else [[index] for index in range(len(distinct))]
    return _parted(_ordered(distinct, groups, seed), parts)


def split_clustered(
    prompts: Sequence[Prompt],
    parts: Mapping[str, int | float],
    seed: int,
    *,
    similarity: float = SIMILARITY,
    clusters: Mapping[str, str] | None = None,
) -> dict[str, list[Prompt]]:
    """Return the prompts of each part as ``split`` does, with more kept together: also prompts alike letter by letter.

    Args:
        prompts: the prompts; of several with one id the first counts.
        parts: shares and counts, as ``split`` takes them.
        seed: another seed is another split.
        similarity: least Jaccard index of the character shingles of near-duplicates, in (0, 1].
        clusters: prompt id -> name of the cluster that is kept together; none: ``near_clusters`` of these prompts.

    Raises:
        DataError: a share or count is out of range, shares sum to more than 1, or prompts run out.
        ValueError: ``similarity`` is out of range.
    """
    distinct = _distinct(prompts)
    names = near_clusters(distinct, similarity=similarity) if clusters is None else clusters
    members: dict[str, list[int]] = defaultdict(list)
    for position, prompt in enumerate(distinct):
        members[names[prompt.id]].append(position)
    return _parted(_ordered(distinct, list(members.values()), seed), parts)


def near_clusters(prompts: Sequence[Prompt], *, similarity: float = SIMILARITY) -> dict[str, str]:
    """Return prompt id -> the smallest id among the prompts that it resembles, itself counted.

    Two prompts are together if their words overlap by 0.8, or if their characters do
    (``checks.near_duplicates.similar_texts``), or if a chain of such pairs joins them; earlier turns count as well. A
    misspelt copy of a short question shares few whole words with it, a reordered one few runs of characters.

    Raises:
        ValueError: ``similarity`` is out of (0, 1].
    """
    distinct = _distinct(prompts)
    clusters = alike_in_every_part(distinct, lambda texts: _alike_texts(texts, NEAR, similarity))
    ids = [[distinct[index].id for index in cluster] for cluster in clusters]
    return {prompt: min(cluster) for cluster in ids for prompt in cluster}


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


def near_duplicates(prompts: Sequence[Prompt], *, near: Fraction = NEAR) -> list[list[Prompt]]:
    """Return the clusters of two or more near duplicates (single linkage), in order of appearance."""
    distinct = _distinct(prompts)
    return [[distinct[index] for index in cluster] for cluster in _clusters(distinct, near) if len(cluster) > 1]


def without_leaks(
    parts: Mapping[str, Sequence[Prompt]], *, near: Fraction = NEAR, clusters: Mapping[str, str] | None = None
) -> tuple[dict[str, list[Prompt]], dict[str, list[Prompt]]]:
    """Return (parts kept, prompts dropped): a prompt with a near duplicate in a *later* part is dropped.

    For parts put together from several files: listed from training to the sealed part, so that what is
    measured is never thinned for the sake of what is trained on.

    Args:
        parts: name -> prompts.
        near: least Jaccard index of the words of near duplicates.
        clusters: prompt id -> name of its cluster, which counts in the place of ``near``.
    """
    rank = {name: index for index, name in enumerate(parts)}
    owners = [(name, prompt) for name, members in parts.items() for prompt in members]
    cluster_of = _word_clusters(_distinct([prompt for _, prompt in owners]), near) if clusters is None else clusters
    last: dict[str, int] = {}
    for name, prompt in owners:
        cluster = cluster_of[prompt.id]
        last[cluster] = max(last.get(cluster, 0), rank[name])
    kept: dict[str, list[Prompt]] = {name: [] for name in parts}
    dropped: dict[str, list[Prompt]] = {name: [] for name in parts}
    for name, prompt in owners:
        leaks = rank[name] < last[cluster_of[prompt.id]]
        (dropped if leaks else kept)[name].append(prompt)
    return kept, dropped


def _word_clusters(distinct: Sequence[Prompt], near: Fraction) -> dict[str, str]:
    """Return prompt id -> name of its cluster of near duplicates by words."""
    clusters = _clusters(distinct, near)
    return {distinct[index].id: str(number) for number, cluster in enumerate(clusters) for index in cluster}


def place(prompt: Prompt, seed: int) -> float:
    """Return the prompt's place in [0, 1): 53 bits of SHA-256 of the seed and the prompt's id."""
    digest = hashlib.sha256(f"{seed}\n{prompt.id}".encode()).digest()
    return (int.from_bytes(digest[:8]) >> 11) / 2**53


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


def _ordered(
    prompts: Sequence[Prompt], clusters: Sequence[Sequence[int]], seed: int
) -> list[tuple[float, list[Prompt]]]:
    """Return (least place, prompts by place) of each cluster of positions, by that place."""
    ordered = []
    for cluster in clusters:
        members = sorted(((place(prompts[index], seed), prompts[index]) for index in cluster), key=_by_place)
        ordered.append((members[0][0], [prompt for _, prompt in members]))
    return sorted(ordered, key=lambda item: (item[0], item[1][0].id))


def _by_place(item: tuple[float, Prompt]) -> tuple[float, str]:
    return item[0], item[1].id


def _distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.id, prompt)
    return list(first.values())


def _words(text: str) -> frozenset[str]:
    text = normalise_prompt(text)
    return frozenset(WORD.findall(text)) or frozenset({text})


def _clusters(prompts: Sequence[Prompt], near: Fraction) -> list[list[int]]:
    """Return the connected components of the graph of near duplicates, each in order of appearance."""
    return alike_in_every_part(prompts, lambda texts: _alike_texts(texts, near, None))


def _alike_texts(texts: Sequence[str], near: Fraction, similarity: float | None) -> list[list[int]]:
    """Return the clusters of texts alike in their words or, with ``similarity``, in their characters."""
    sets = DisjointSets(len(texts))
    same: dict[frozenset[str], int] = {}  # many may have the very same words, whose pairs are too many to look at
    for index, text in enumerate(texts):
        sets.join(same.setdefault(_words(text), index), index)
    places = list(same.values())
    for first, second in _near_pairs(list(same), near):
        sets.join(places[first], places[second])
    for cluster in similar_texts(texts, similarity=similarity) if similarity is not None else ():
        for index in cluster[1:]:
            sets.join(cluster[0], index)
    return sets.members()


def _near_pairs(sets: Sequence[frozenset[str]], near: Fraction) -> Iterator[tuple[int, int]]:
    """Yield the pairs with a Jaccard index of at least ``near``, exactly, by prefix filtering.

    Sets that overlap by t = ceil(near * size) words share one of their (size - t + 1) rarest words
    (Bayardo, Ma and Srikant 2007, section 4), so only those are looked up.
    """
    frequency = Counter(word for words in sets for word in words)
    index: dict[str, list[int]] = defaultdict(list)
    for current, words in enumerate(sets):
        needed = -(-near.numerator * len(words) // near.denominator)
        rarest = sorted(words, key=lambda word: (frequency[word], word))[: len(words) - needed + 1]
        for other in {candidate for word in rarest for candidate in index[word]}:
            shared = len(words & sets[other])
            if shared * near.denominator >= near.numerator * (len(words) + len(sets[other]) - shared):
                yield other, current
        for word in rarest:
            index[word].append(current)
