"""Micro-sharding: the records of a shard that are not done become chunks, and the workers of this machine do these.

The plan has cut each shard into chunks already (macro.py). Of these, `open_chunks` gives the ones without a marker; a
chunk that is done in part, and records that are tried again, are cut again by the same rule. `run_chunks` makes a task
of each chunk and has the workers do all tasks, the costliest first.

Between the two lies a seam. On this side of it are chunks and the run folder, on the other side processes. What crosses
it is an iterable of `ChunkTask`, made one by one as workers come free, each of which

- is plain data, complete in itself, that any worker process can be sent;
- ends as parts and a marker in the run folder, whichever worker does it, in whichever order, and however often;
- gives nothing back but that marker: how far the work is, the tally counts, and when to end early, ``stop`` says.

So whatever calls `Supervisor.see_through` once for each task, from as many threads as there are workers, can spread the
tasks. `Supervisor.run` does it with threads of its own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shardkit.plan.chunks import assign_chunks, record_costs
from shardkit.runfolder.ledger import OPEN
from shardkit.tables.arrays import arrow
from shardkit.workers.lanes import Supervisor
from shardkit.workers.publish import publish_chunk
from shardkit.workers.tasks import ChunkTask, records_to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import Ledger
    from shardkit.runfolder.stop import Stop
    from shardkit.workers.pool import WorkerPool
    from shardkit.workers.tally import Tally


@dataclass(frozen=True)
class Chunk:
    """Records that go to a worker together, by their row numbers; ``is_planned`` if it is one of the plan's chunks."""

    shard: int
    number: int
    records: np.ndarray
    is_planned: bool


def open_chunks(
    ledger: Ledger, retried: np.ndarray, *, workers: int, all_under_shard: int | None = None
) -> list[Chunk]:
    """The chunks that have to be done, the costliest first.

    Args:
        ledger: says which records are open.
        retried: the row numbers of records in quarantine that are tried again.
        workers: how many share the work.
        all_under_shard: the shard under which all records are committed, whichever shard they were planned for.
    """
    if all_under_shard is None:
        chunks = [Chunk(shard, number, ids, not is_part) for shard, number, ids, is_part in ledger.to_do()]
        loose = retried
        shards = ledger.shard[loose]
    else:
        chunks = []
        loose = np.union1d(retried, np.flatnonzero(ledger.state == OPEN))
        shards = np.full(len(loose), all_under_shard)
    for shard, ids in ledger.apart(loose, shards):
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
    """Have the workers do all chunks; returns when each has its parts and its marker, or ``stop`` was asked for.

    A worker that dies costs only its chunk, which is begun again; a record that kills its worker twice goes to the
    quarantine.
    """
    columns = ["key", "main", "bytes", "objects", *(["etags"] if pool.fetches else [])]
    tasks = _tasks(chunks, folder.records(columns), attempt)
    # An output that is far away gets each chunk from the spool while the workers go on with the next.
    publish = functools.partial(publish_chunk, folder, pool.spool) if pool.spool is not None else None
    Supervisor(pool, stop, tally, timeout_s=timeout_s, publish=publish).run(tasks)


def _tasks(chunks: list[Chunk], records: pa.Table, attempt: int) -> Iterator[ChunkTask]:
    for chunk in chunks:
        rows = records.take(arrow(chunk.records)).combine_chunks()
        yield ChunkTask(
            chunk.shard,
            chunk.number,
            attempt,
            ids=chunk.records.tolist(),
            records=records_to_bytes(rows),
            explicit=not chunk.is_planned,
        )
