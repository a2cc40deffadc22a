"""What a plan takes over of the work of earlier runs: what of it is still valid, and under which numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shardkit.plan.chunks import SMALLEST_SHARE, record_costs
from shardkit.plan.groups import partition_names, with_dense_groups
from shardkit.tables.arrays import arrow

if TYPE_CHECKING:
    import pyarrow as pa

    from shardkit.plan.compare import Comparison
    from shardkit.runfolder.document_types import Marker, PartitionChanges, QuarantineEntry, Unchanged

# Chunks of a unit for each worker: about five times as many as there are when it is new.
TAKEN_BY_WORKER = 2 * round(1 / SMALLEST_SHARE)


def changed_records(
    table: pa.Table, comparison: Comparison | None, *, by_day: bool
) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """The records of partitions in which something has changed; without a ``comparison``, all records.

    With them the number of the marker that each is taken over with, or -1 where it has to be computed, and the rows of
    the listing that they were.
    """
    if comparison is None:
        return table, np.full(len(table), -1, np.int32), np.zeros(0, np.int64)
    partition, names = partition_names(table, by_day=by_day)
    changed = np.array([comparison.changes[name].any for name in names], bool)
    rows = np.flatnonzero(changed[partition])
    kept = table if len(rows) == len(table) else table.take(arrow(rows))
    return with_dense_groups(kept), comparison.taken[rows], rows


def still_taken(
    taken: np.ndarray, shard: np.ndarray, unit: np.ndarray, sizes: np.ndarray, *, workers: int
) -> np.ndarray:
    """Leave out chunks that are better computed again than taken over.

    These are chunks whose records are in several shards now. They are also, if a unit is in too many pieces after many
    increments, the pieces that are smaller than any chunk that the unit would be cut into today.
    """
    rows = np.flatnonzero(taken >= 0)
    if not len(rows):
        return taken
    number, first, marker = np.unique(taken[rows], return_index=True, return_inverse=True)
    home = shard[rows][first]
    bad = np.zeros(len(number), bool)
    bad[marker[shard[rows] != home[marker]]] = True
    costs = record_costs(sizes)
    smallest = np.bincount(unit, costs) * SMALLEST_SHARE / workers
    unit_of = unit[rows][first]
    crowded = np.bincount(unit_of, minlength=len(smallest)) > TAKEN_BY_WORKER * workers
    bad |= crowded[unit_of] & (np.bincount(marker, costs[rows]) < smallest[unit_of])
    kept: np.ndarray = taken.copy()
    kept[rows[bad[marker]]] = -1
    return kept


def changes_of(
    comparison: Comparison | None, table: pa.Table, taken: np.ndarray, *, by_day: bool
) -> dict[str, PartitionChanges] | None:
    """Which partitions are rebuilt and why; ``again`` counts unchanged records that are computed again nevertheless."""
    if comparison is None:
        return None
    partition, names = partition_names(table, by_day=by_day)
    free = np.bincount(partition[taken < 0], minlength=len(names)).tolist()
    partitions: dict[str, PartitionChanges] = {}
    for name, computed in zip(names, free, strict=True):
        changes = comparison.changes[name]
        partitions[name] = {
            "new": changes.new,
            "changed": changes.changed,
            "vanished": changes.vanished,
            "unchanged": changes.unchanged,
            "reason": changes.reason,
            "again": max(0, computed - changes.new - changes.changed),
        }
    return partitions


def number_within(shard: np.ndarray, unit: np.ndarray, taken: np.ndarray, chunk: np.ndarray) -> np.ndarray:
    """Chunk numbers that are unique within each shard: first chunks that are taken over, then the others by unit."""
    fresh = taken < 0
    keys = np.stack([shard, fresh, np.where(fresh, unit, 0), np.where(fresh, chunk, taken)]).astype(np.int64)
    order = np.lexsort(keys[::-1])
    ordered = keys[:, order]
    begins = np.r_[True, (np.diff(ordered, axis=1) != 0).any(axis=0)]
    number = np.cumsum(begins) - 1
    first = np.r_[True, np.diff(ordered[0]) != 0]
    start = np.maximum.accumulate(np.where(first, number, 0))
    result = np.empty(len(shard), np.int32)
    result[order] = number - start
    return result


def markers_taken_over(
    comparison: Comparison, taken: np.ndarray, rows: np.ndarray, shard: np.ndarray, chunk: np.ndarray
) -> list[Marker]:
    """The markers that are taken over, with their new shard, chunk and row numbers."""
    new_ids = np.full(len(comparison.taken), -1, np.int64)
    new_ids[rows] = np.arange(len(rows))
    numbers, firsts, counts = np.unique(taken, return_index=True, return_counts=True)
    taken_over: list[Marker] = []
    for number, first, count in zip(numbers.tolist(), firsts.tolist(), counts.tolist(), strict=True):
        if number < 0:
            continue
        marker: Marker = comparison.markers[number]
        entries: list[QuarantineEntry] = [
            {**entry, "record": int(new_ids[entry["record"]])} for entry in marker["quarantine"]
        ]
        entries = [entry for entry in entries if taken[entry["record"]] == number]  # others were tried again since
        taken_over.append(
            {
                **marker,
                "shard": int(shard[first]),
                "chunk": int(chunk[first]),
                "quarantine": entries,
                "records": {"listed": count, "done": count - len(entries), "quarantined": len(entries)},
                "gone": _gone(new_ids[comparison.records_at[number]], comparison.records_at[number] < 0, taken, number),
            }
        )
    return taken_over


def _gone(ids: np.ndarray, absent: np.ndarray, taken: np.ndarray, number: int) -> list[int]:
    """The positions in a chunk, as it was computed, whose records are no longer taken over with it."""
    gone: list[int] = np.flatnonzero(absent | (taken[ids] != number)).tolist()
    return gone


def unchanged(comparison: Comparison | None) -> Unchanged:
    """How many partitions are left as they are, and how many records these have."""
    same = [c for c in comparison.changes.values() if not c.any] if comparison else []
    return {"partitions": len(same), "records": sum(c.unchanged for c in same)}
