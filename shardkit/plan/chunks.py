"""A shard's records to chunks: how many records a worker is given at once."""

from __future__ import annotations

import numpy as np

from shardkit.plan.sizes import CHUNK_BYTES, CHUNK_RECORDS
from shardkit.tables.packing import longest_first

# What a record costs apart from its bytes (opening it, calling the function), in bytes that could be read meanwhile.
RECORD_COST_BYTES = 1 << 14
LARGEST_SHARE = 1 / 8  # the first dynamic chunks, as a share of one worker's work
SMALLEST_SHARE = 1 / 64  # the last ones


def assign_chunks(
    sizes: np.ndarray, *, how: str, workers: int, least_cost: float = 0.0, at_once: int = 1
) -> np.ndarray:
    """The chunk number, from 0 on, of each of a shard's records.

    Args:
        sizes: the bytes of each record, in the order of the keys, int64.
        how: ``even`` (as many contiguous chunks as workers, whose record counts differ by one at most), ``balanced``
            (as many chunks as workers, packed by bytes, the longest first) or ``dynamic`` (many contiguous chunks,
            large ones first, then smaller and smaller ones).
        workers: how many vCPUs the shard has.
        least_cost: what a dynamic chunk costs at least, if the workers have other shards to do as well.
        at_once: how many records a worker is at together; dynamic chunks have that many, or a multiple of it.
    """
    count = len(sizes)
    if how == "even":
        chunks = min(workers, count)
        return (np.arange(count, dtype=np.int64) * chunks // max(count, 1)).astype(np.int32)
    costs = record_costs(sizes)
    if how == "balanced":
        return longest_first(costs.astype(np.int64), bins=min(workers, count))
    return _ever_smaller(costs, workers=workers, least_cost=least_cost, at_once=min(at_once, CHUNK_RECORDS))


def record_costs(sizes: np.ndarray, counts: np.ndarray | int = 1) -> np.ndarray:
    """The expected cost of each record, or of ``counts`` records that have that size together, in bytes of reading."""
    costs = sizes.astype(np.float64)
    costs += np.multiply(counts, RECORD_COST_BYTES)
    return costs


def _ever_smaller(costs: np.ndarray, *, workers: int, least_cost: float, at_once: int) -> np.ndarray:
    """Contiguous chunks whose cost falls with the work that remains (guided self-scheduling)."""
    ends = np.cumsum(costs, out=costs)  # in place: the costs are not needed after this
    total = float(ends[-1]) if len(ends) else 0.0
    chunk = np.empty(len(costs), np.int32)
    start = number = 0
    while start < len(costs):
        done = float(ends[start - 1]) if start else 0.0
        target = max((total - done) * LARGEST_SHARE / workers, total * SMALLEST_SHARE / workers, least_cost)
        stop = int(np.searchsorted(ends, done + min(target, CHUNK_BYTES), "right"))
        count = min(-(-max(stop - start, 1) // at_once), CHUNK_RECORDS // at_once) * at_once
        stop = min(start + count, len(costs))
        chunk[start:stop] = number
        start, number = stop, number + 1
    return chunk
