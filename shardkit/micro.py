"""Micro-sharding: open records to chunks, and chunks to the workers of this machine.

A run's plan has cut each shard into chunks already. What is left of those that are not finished, and records that are
tried again, are cut here, by the same rule. Each chunk then goes to a worker as one task, the costliest first.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shardkit.plan.chunks import assign_chunks, record_costs
from shardkit.runfolder.ledger import OPEN
from shardkit.tables.arrays import arrow
from shardkit.workers.lanes import Supervisor
from shardkit.workers.tasks import ChunkTask

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import Ledger
    from shardkit.runfolder.stop import Stop
    from shardkit.storage.local_folder import LocalFolder
    from shardkit.workers.pool import WorkerPool
    from shardkit.workers.tally import Tally


@dataclass(frozen=True)
class Chunk:
    """Records that go to a worker together, by their numbers; ``is_planned`` if they are one of the plan's chunks."""

    shard: int
    number: int
    records: np.ndarray
    is_planned: bool


def open_chunks(ledger: Ledger, again: np.ndarray, *, workers: int, under: int | None = None) -> list[Chunk]:
    """The chunks that are to be worked on, the costliest first.

    Args:
        ledger: says which records are open.
        again: the numbers of records in quarantine that are tried once more.
        workers: how many share the work.
        under: the shard that all of it goes under, where the planned shards and chunks do not count.
    """
    if under is None:
        chunks = [Chunk(shard, number, ids, not is_part) for shard, number, ids, is_part in ledger.to_do()]
        shards = ledger.shard[again]
    else:
        again = np.union1d(again, np.flatnonzero(ledger.state == OPEN))
        chunks, shards = [], np.full(len(again), under)
    for shard, ids in ledger.apart(again, shards):
        number = assign_chunks(ledger.bytes[ids], how="dynamic", workers=workers)
        chunks += [Chunk(shard, ledger.free_chunk(), ids[number == n], is_planned=False) for n in np.unique(number)]
    return sorted(chunks, key=lambda chunk: -float(record_costs(ledger.bytes[chunk.records]).sum()))


def run_chunks(
    folder: RunFolder,
    pool: WorkerPool,
    chunks: list[Chunk],
    tally: Tally,
    stop: Stop,
    *,
    attempt: int,
    timeout_s: float | None,
) -> None:
    """Have the workers do all chunks, each of which ends as parts and a marker, or until ``stop`` is asked for.

    A worker that dies costs its chunk only, which goes out again; a record that kills it twice goes to the quarantine.
    """
    columns = ["key", "main", "bytes", "objects", *(["etags"] if pool.fetches else [])]
    tasks = _tasks(chunks, folder.records(columns), attempt)
    publish = functools.partial(_publish, folder, pool.spool) if pool.spool is not None else None
    Supervisor(pool, stop, tally, timeout_s=timeout_s, publish=publish).run(tasks)


def _tasks(chunks: list[Chunk], records: pa.Table, attempt: int) -> Iterator[ChunkTask]:
    import pyarrow as pa

    for chunk in chunks:
        rows = records.take(arrow(chunk.records)).combine_chunks()
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_table(rows)
        ids = chunk.records.tolist()
        yield ChunkTask(chunk.shard, chunk.number, attempt, ids, sink.getvalue(), not chunk.is_planned)


def _publish(folder: RunFolder, spool: LocalFolder, marker: dict[str, Any]) -> None:
    """Upload a chunk's parts, and when they are all there, its marker."""
    home = folder.parts_of(marker["shard"])
    for part in marker["parts"]:
        key = f"{home}/{part['name']}"
        folder.files.put_file(spool.root / key, key)
        spool.remove(key)
    if marker["records"]["listed"]:
        folder.write_marker(marker)
