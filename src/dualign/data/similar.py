"""Texts and prompts that are much alike, found without comparing each with all others: minimal hashes of shingles."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dualign.data.turns import said
from dualign.records import Prompt, normalise_prompt


class DisjointSets:
    """Sets of the numbers 0 to n - 1 that only grow together; the least number of a set stands for it."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, member: int) -> int:
        """Return the least number of the set that ``member`` is in."""
        parent = self._parent
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    def join(self, first: int, second: int) -> None:
        """Make one set of the two that these numbers are in."""
        low, high = sorted((self.root(first), self.root(second)))
        self._parent[high] = low

    def members(self) -> list[list[int]]:
        """Return every set, its numbers ascending, ordered by its least number."""
        sets: dict[int, list[int]] = defaultdict(list)
        for member in range(len(self._parent)):
            sets[self.root(member)].append(member)
        return list(sets.values())


HashArray = NDArray[np.uint64]

SIMILARITY = 0.8
"""Least likeness of near-duplicates: one word of fifteen exchanged, or a slip of the pen in a sentence."""
SHINGLE = 5
"""Characters of a shingle: about a word, so that unrelated sentences share few."""
BANDS, BAND_ROWS = 32, 4
LEADERS = 16
"""Texts of one bucket that the others in it are compared with; prompts made from one template fill whole buckets."""
_BLOCK = 4096  # shingles hashed at a time, which bounds the memory that a very long text takes


def similar_texts(texts: Sequence[str], *, similarity: float = SIMILARITY, seed: int = 0) -> list[list[int]]:
    """Return the clusters of two or more like texts (single linkage), as ascending positions, in order of appearance.

    Args:
        texts: in any script; case and white space do not count.
        similarity: least Jaccard index of two texts that are alike, in (0, 1].
        seed: of the hash functions; it decides which pairs below 0.8 are missed, and nothing else.

    Raises:
        ValueError: ``similarity`` is out of range.
    """
    if not 0 < similarity <= 1:
        raise ValueError(f"similarity must be in (0, 1]; given {similarity}")
    sets = [shingles(text) for text in texts]
    found = DisjointSets(len(texts))
    signatures = minimal_hashes(sets, seed)
    for band in range(BANDS):
        columns = np.ascontiguousarray(signatures[:, band * BAND_ROWS : (band + 1) * BAND_ROWS])
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for position, key in enumerate(columns):
            buckets[key.tobytes()].append(position)
        for bucket in buckets.values():
            _join_alike(bucket, sets, found, similarity)
    return [cluster for cluster in found.members() if len(cluster) > 1]


def similar_prompts(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the clusters of two or more prompts that are alike in every part, as ``similar_texts`` does of texts."""
    return [cluster for cluster in alike_in_every_part(prompts, similar_texts) if len(cluster) > 1]


def alike_in_every_part(
    prompts: Sequence[Prompt], alike: Callable[[Sequence[str]], list[list[int]]]
) -> list[list[int]]:
    """Return the clusters of prompts that ``alike`` finds alike as a whole, singles too, in order of appearance.

    Conversations are compared in three steps: their last turns, then all that user and assistant said, then all of that
    with the system turn. They are parted wherever one differs, so that neither a last turn that many share ("please go
    on") nor a system turn that all share makes near-duplicates of them.

    Args:
        prompts: single turns or conversations.
        alike: from texts to their clusters, as positions; a text that is in none is like no other.
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


def _parts(
    cluster: Sequence[int], texts: Sequence[str], alike: Callable[[Sequence[str]], list[list[int]]]
) -> list[list[int]]:
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


def _join_alike(bucket: Sequence[int], sets: Sequence[HashArray], found: DisjointSets, similarity: float) -> None:
    """Join the texts of one bucket with the first of its leaders that they are like; the others lead themselves."""
    leaders: list[int] = []
    for position in bucket:
        for leader in leaders:
            if found.root(leader) == found.root(position):
                break
            if jaccard(sets[leader], sets[position]) >= similarity:
                found.join(leader, position)
                break
        else:
            if len(leaders) < LEADERS:
                leaders.append(position)


def _mixed(values: HashArray) -> HashArray:
    """Return 64 bits that each depend on all bits of the value (the finaliser of Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
