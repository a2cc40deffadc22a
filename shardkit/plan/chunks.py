"""A shard's records to chunks: how many a worker is given at once."""

from __future__ import annotations

import numpy as np

from shardkit.tables.packing import longest_first

# What a record costs beside its bytes (opening it, calling the function), in bytes of reading.
RECORD_COST_BYTES = 1 << 14
LARGEST_SHARE = 1 / 8  # of a worker's share of the work: the first dynamic chunks
SMALLEST_SHARE = 1 / 64  # the last ones
CHUNK_RECORDS = 5_000  # an upper bound, so that a crash never costs more than that
CHUNK_BYTES = 1 << 30


def assign_chunks(sizes: np.ndarray, *, how: str, workers: int, least_cost: float = 0.0) -> np.ndarray:
    """The chunk number, from 0 on, of each of a shard's records.

    Args:
        sizes: bytes of each record, in key order, int64.
        how: ``even`` (as many contiguous chunks as workers, of record counts differing by one at most), ``balanced``
            (as many chunks as workers, packed by bytes, the longest first) or ``dynamic`` (many contiguous chunks,
            large ones and then ever smaller ones).
        workers: how many vCPUs the shard has.
        least_cost: what a dynamic chunk costs at the least, where the workers have other shards to do as well.
    """
    count = len(sizes)
    if how == "even":
        chunks = min(workers, count)
        return (np.arange(count, dtype=np.int64) * chunks // max(count, 1)).astype(np.int32)
    costs = record_costs(sizes)
    if how == "balanced":
        return longest_first(costs.astype(np.int64), bins=min(workers, count))
    return _ever_smaller(costs, workers=workers, least_cost=least_cost)


def record_costs(sizes: np.ndarray, counts: np.ndarray | int = 1) -> np.ndarray:
    """What each record, or so many records of that size together, are expected to cost, in bytes of reading."""
    costs = sizes.astype(np.float64)
    costs += np.multiply(counts, RECORD_COST_BYTES)
    return costs


def _ever_smaller(costs: np.ndarray, *, workers: int, least_cost: float) -> np.ndarray:
    """Contiguous chunks whose cost falls with what remains, as guided self-scheduling has them."""
    ends = np.cumsum(costs, out=costs)  # in their place: nobody needs the costs any more
    total = float(ends[-1]) if len(ends) else 0.0
    chunk = np.empty(len(costs), np.int32)
    start = number = 0
    while start < len(costs):
        done = float(ends[start - 1]) if start else 0.0
        target = max((total - done) * LARGEST_SHARE / workers, total * SMALLEST_SHARE / workers, least_cost)
        stop = int(np.searchsorted(ends, done + min(target, CHUNK_BYTES), "right"))
        stop = min(max(stop, start + 1), start + CHUNK_RECORDS)
        chunk[start:stop] = number
        start, number = stop, number + 1
    return chunk
