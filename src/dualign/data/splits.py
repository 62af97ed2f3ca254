"""Likeness of prompts and splits by hash: seeded, independent of file order, near duplicates on one side.

A prompt's place is SHA-256 of (seed, id), so that new prompts move no old one between *shares*. Prompts of one cluster
share the least place among them; a new prompt can move only the cluster that it joins. *Counts* take the first n in
this order, so there the border moves. Prompts are near duplicates whose word sets overlap by a Jaccard index of 0.8 or
more, or their runs of characters, which are found by minimal hashes, without comparing each prompt with all others. Of
conversations every turn is compared, the system's too.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dualign.data.turns import said
from dualign.errors import DataError
from dualign.hashing import digest
from dualign.records import Prompt, normalise_prompt

if TYPE_CHECKING:
    from scipy.cluster.hierarchy import DisjointSet

HashArray = NDArray[np.uint64]
Alike = Callable[[Sequence[str]], list[list[int]]]
"""From texts to the clusters of those that are alike, as positions; a text that is in none is like no other."""

SIMILARITY = 0.8
"""Least likeness of near-duplicates: one word of fifteen exchanged, or a slip of the pen in a sentence."""
SHINGLE = 5
"""Characters of a shingle: about a word, so that unrelated sentences share few."""
BANDS, BAND_ROWS = 32, 4
LEADERS = 16
"""Texts of one bucket that the others in it are compared with; prompts made from one template fill whole buckets."""
_BLOCK = 4096  # shingles hashed at a time, which bounds the memory that a very long text takes


def similar_texts(texts: Sequence[str], *, seed: int = 0) -> list[list[int]]:
    """Return the clusters of two or more like texts (single linkage), as ascending positions, in order of appearance.

    Args:
        texts: in any script; case and white space do not count.
        seed: of the hash functions; it decides which pairs below 0.8 are missed, and nothing else.
    """
    from scipy.cluster.hierarchy import DisjointSet

    sets = [shingles(text) for text in texts]
    found = DisjointSet(range(len(texts)))
    signatures = minimal_hashes(sets, seed)
    for band in range(BANDS):
        columns = np.ascontiguousarray(signatures[:, band * BAND_ROWS : (band + 1) * BAND_ROWS])
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for position, key in enumerate(columns):
            buckets[key.tobytes()].append(position)
        for bucket in buckets.values():
            _join_alike(bucket, sets, found)
    return [sorted(cluster) for cluster in found.subsets() if len(cluster) > 1]


def similar_prompts(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the clusters of two or more prompts that are alike in every part, as ``similar_texts`` does of texts."""
    return [cluster for cluster in alike_in_every_part(prompts, similar_texts) if len(cluster) > 1]


def alike_in_every_part(prompts: Sequence[Prompt], alike: Alike) -> list[list[int]]:
    """Return the clusters of prompts that ``alike`` finds alike as a whole, singles too, in order of appearance.

    Conversations are compared in three steps: their last turns, then all that user and assistant said, then all of that
    with the system turn. They are parted wherever one differs, so that neither a last turn that many share ("please go
    on") nor a system turn that all share makes near-duplicates of them.
    """
    clusters = _parts(list(range(len(prompts))), [prompt.text for prompt in prompts], alike)
    for view in (_dialogue, _whole):
        parted = []
        for cluster in clusters:
            # of single turns every view is the same text
            differs = len(cluster) > 1 and any(prompts[position].history for position in cluster)
            parted += _parts(cluster, [view(prompts[k]) for k in cluster], alike) if differs else [cluster]
        clusters = parted
    return sorted(clusters)


def _parts(cluster: Sequence[int], texts: Sequence[str], alike: Alike) -> list[list[int]]:
    """Return a cluster parted further by what its members' texts are like."""
    found = alike(texts)
    inside = {place for part in found for place in part}
    return [[cluster[place] for place in part] for part in found] + [
        [member] for place, member in enumerate(cluster) if place not in inside
    ]


def _dialogue(prompt: Prompt) -> str:
    return "\n".join([*(turn.text for turn in prompt.history if turn.role != "system"), prompt.text])


def _whole(prompt: Prompt) -> str:
    return "\n".join(said(prompt))


def jaccard(first: HashArray, second: HashArray) -> float:
    """Return the share of the shingles of two texts that both have; each array is sorted and without repetition."""
    shared = np.intersect1d(first, second, assume_unique=True).size
    return float(shared / (first.size + second.size - shared))


def shingles(text: str) -> HashArray:
    """Return the sorted distinct hashes of the runs of ``SHINGLE`` characters; a shorter text is one run."""
    codes = np.frombuffer(normalise_prompt(text).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    length = min(SHINGLE, codes.size)
    hashes = np.full(codes.size - length + 1, length, dtype=np.uint64)
    for start in range(length):
        run = codes[start : codes.size - length + 1 + start].astype(np.uint64)
        hashes = _mixed(hashes ^ (run + np.uint64(0x9E3779B97F4A7C15)))
    return np.unique(hashes)


def minimal_hashes(sets: Sequence[HashArray], seed: int) -> HashArray:
    """Return shape ``[text, band x row]``: the least hash of each set under every hash function."""
    generator = np.random.default_rng(seed)
    count = BANDS * BAND_ROWS
    factor = generator.integers(0, 2**63, count, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    offset = generator.integers(0, 2**63, count, dtype=np.uint64)
    result = np.full((len(sets), count), np.iinfo(np.uint64).max, dtype=np.uint64)
    for row, hashes in enumerate(sets):
        for start in range(0, hashes.size, _BLOCK):
            block = hashes[start : start + _BLOCK, None] * factor + offset
            np.minimum(result[row], block.min(axis=0), out=result[row])
    return result


def _join_alike(bucket: Sequence[int], sets: Sequence[HashArray], found: "DisjointSet") -> None:
    """Join the texts of one bucket with the first of its leaders that they are like; the others lead themselves."""
    leaders: list[int] = []
    for position in bucket:
        for leader in leaders:
            if found.connected(leader, position) or jaccard(sets[leader], sets[position]) >= SIMILARITY:
                found.merge(leader, position)
                break
        else:
            if len(leaders) < LEADERS:
                leaders.append(position)


def _mixed(values: HashArray) -> HashArray:
    """Return 64 bits that each depend on all bits of the value (the finaliser of Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


NEAR = Fraction(4, 5)
"""Least Jaccard index of two word sets that makes near duplicates."""
WORD = re.compile(r"\w+")


def split(
    prompts: Sequence[Prompt], parts: Mapping[str, int | float], seed: int, *, clusters: Mapping[str, str] | None = None
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

    Two prompts are together if their words overlap by 0.8, or if their characters do (``similar_texts``), or if
    a chain of such pairs joins them; earlier turns count as well. A misspelt copy of a short question shares few whole
    words with it, a reordered one few runs of characters.
    """
    return _named(prompts, lambda texts: _alike_words(texts, *similar_texts(texts)))


def _named(prompts: Sequence[Prompt], alike: Alike) -> dict[str, str]:
    distinct = _distinct(prompts)
    clusters = [[distinct[index].id for index in cluster] for cluster in alike_in_every_part(distinct, alike)]
    return {prompt: min(cluster) for cluster in clusters for prompt in cluster}


def _parted(
    clusters: Sequence[tuple[float, list[Prompt]]], parts: Mapping[str, int | float]
) -> dict[str, list[Prompt]]:
    """Return the prompts of each part of clusters in hash order; shares are taken first, then counts."""
    shares, counts = _checked(parts)
    result: dict[str, list[Prompt]] = {name: [] for name in parts}
    borders = list(zip(shares, accumulate(shares.values()), strict=True))
    rest = []
    for place, cluster in clusters:
        # shares that sum to 1 leave no gap by rounding
        name = next((name for name, border in borders if place < border or border > 1 - 1e-9), None)
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
    kept: dict[str, list[Prompt]] = {}
    dropped: dict[str, list[Prompt]] = {}
    for number, (name, members) in enumerate(parts.items()):
        kept[name] = [prompt for prompt in members if last[clusters[prompt.id]] == number]
        dropped[name] = [prompt for prompt in members if last[clusters[prompt.id]] > number]
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
    from scipy.cluster.hierarchy import DisjointSet

    sets = DisjointSet(range(len(texts)))
    same: dict[frozenset[str], int] = {}  # many may have the very same words, whose pairs are too many to look at
    for index, text in enumerate(texts):
        sets.merge(same.setdefault(_words(text), index), index)
    places = list(same.values())
    for first, second in _near_pairs(list(same)):
        sets.merge(places[first], places[second])
    for cluster in clusters:
        for index in cluster[1:]:
            sets.merge(cluster[0], index)
    return [sorted(cluster) for cluster in sets.subsets()]


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
