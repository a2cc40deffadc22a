"""Where a plan cuts its shards into chunks, apart from chunks that are taken over from earlier runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shardkit.plan.changes import number_within
from shardkit.plan.chunks import SMALLEST_SHARE, assign_chunks, record_costs
from shardkit.plan.shards import by_shard
from shardkit.plan.sizes import CHUNK_BYTES, CHUNK_RECORDS
from shardkit.tables.arrays import numpy

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Cut:
    """How records are cut into chunks; ``at_once`` is how many of them a worker is at together."""

    how: str
    workers: int
    own_instances: bool
    at_once: int = 1


def cut_chunks(
    table: pa.Table, shard: np.ndarray, unit: np.ndarray, taken: np.ndarray, cut: Cut, *, by_day: bool
) -> np.ndarray:
    """The chunk of each record: the earlier run's chunk with which it is taken over, or a new one of its unit."""
    chunk = np.zeros(len(table), np.int32)
    free, sizes = taken < 0, numpy(table["bytes"])
    if free.all():
        chunk = _number_chunks(sizes, unit, cut)
    elif free.any():
        dense, number = np.unique(unit[free], return_inverse=True)
        # The rest of a unit is not cut finer than the whole would be: each increment would leave more small chunks.
        least = np.bincount(unit, record_costs(sizes))[dense] * (SMALLEST_SHARE / cut.workers)
        chunk[free] = _number_chunks(sizes[free], number.astype(np.int32), cut, least=least)
    if by_day or not free.all():
        chunk = number_within(shard, unit, taken, chunk)
    return chunk


def _number_chunks(sizes: np.ndarray, shard: np.ndarray, cut: Cut, *, least: np.ndarray | None = None) -> np.ndarray:
    """The chunk of each record within its shard; ``least`` is the least cost of a chunk, for each shard."""
    # If the workers do all shards, a small shard need not be cut as finely as if it were the only one.
    whole_cost = float(record_costs(sizes.sum(), len(sizes)))
    least_cost = 0.0 if cut.own_instances else whole_cost * SMALLEST_SHARE / cut.workers
    chunk = np.zeros(len(sizes), np.int32)
    order, starts, counts = by_shard(shard)
    whole = counts == 1
    if cut.how == "dynamic":
        total = record_costs(np.add.reduceat(sizes[order], starts), counts)
        whole |= (total <= min(least_cost, CHUNK_BYTES)) & (counts <= CHUNK_RECORDS)
    for i in np.flatnonzero(~whole):
        among = slice(starts[i], starts[i] + counts[i])
        rows = among if isinstance(order, slice) else order[among]
        wanted = least_cost if least is None else max(least_cost, float(least[i]))
        at_once = cut.at_once
        chunk[rows] = assign_chunks(sizes[rows], how=cut.how, workers=cut.workers, least_cost=wanted, at_once=at_once)
    return chunk
