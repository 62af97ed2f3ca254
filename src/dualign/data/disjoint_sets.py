"""Disjoint sets of the numbers 0 to n - 1, joined two at a time: connected components of a graph given by its edges."""

from collections import defaultdict


class DisjointSets:
    """Sets that only grow together; the least number of a set stands for it."""

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
