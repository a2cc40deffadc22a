"""Packs things of known sizes into bins that are as equal as possible. Nothing here knows what the things are."""

from __future__ import annotations

import heapq

import numpy as np

# How much more than an even share the fullest bin may hold so that neighbours stay together.
SPARE = 1.05


def longest_first(sizes: np.ndarray, *, bins: int) -> np.ndarray:
    """The bin of each thing: the largest first, each into the bin that has least so far.

    The fullest bin is at most 4/3 as full as with the best packing. No bin is left empty, if there are as many
    things as bins and their sizes are above 0.

    Args:
        sizes: int64.
        bins: how many, at least 1 where there are things.
    """
    order = np.argsort(-sizes, kind="stable")
    # One integer holds a bin's load and its number, because comparing bins is most of the work.
    heap = list(range(bins))
    numbers = []
    for size in sizes[order].tolist():
        least = heap[0]
        numbers.append(least % bins)
        heapq.heapreplace(heap, least + size * bins)
    packed = np.empty(len(sizes), np.int32)
    packed[order] = numbers
    return packed


def evenly(sizes: np.ndarray, *, bins: int) -> np.ndarray:
    """The bin of each thing: neighbours together if that makes the fullest bin hardly fuller, else largest first.

    Bins are numbered by their first things, and none is empty.

    Args:
        sizes: int64, all above 0.
        bins: how many, at most as many as there are things.
    """
    neighbours = _cut(sizes, bins=bins)
    least = max(sizes.sum() / bins, sizes.max())
    if neighbours is not None and _fullest(neighbours, sizes) <= SPARE * least:
        return neighbours
    packed = longest_first(sizes, bins=bins)
    # Some things are so large that no packing is even; the bound of 4/3 holds all the same.
    allowed = max(min(SPARE * _fullest(packed, sizes), 4 / 3 * least), _fullest(packed, sizes))
    if neighbours is not None and _fullest(neighbours, sizes) <= allowed:
        return neighbours
    return in_order(packed)


def in_order(numbers: np.ndarray) -> np.ndarray:
    """The same bins, numbered from 0 in order of first appearance."""
    _, first, codes = np.unique(numbers, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    return rank[codes]


def _cut(sizes: np.ndarray, *, bins: int) -> np.ndarray | None:
    """Contiguous bins, cut where the running total is closest to even shares; None if that leaves one empty."""
    ends = np.r_[0, np.cumsum(sizes)]
    wanted = ends[-1] * (np.arange(1, bins) / bins)
    right = np.searchsorted(ends, wanted)
    nearest = right - (wanted - ends[right - 1] < ends[right] - wanted)
    starts = np.r_[0, nearest]
    counts = np.diff(np.r_[starts, len(sizes)])
    return np.repeat(np.arange(bins, dtype=np.int32), counts) if (counts > 0).all() else None


def _fullest(numbers: np.ndarray, sizes: np.ndarray) -> int:
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(numbers[order]) > 0])
    return int(np.add.reduceat(sizes[order], starts).max())
