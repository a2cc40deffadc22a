"""Micro-sharding: the records of a shard that are not done become chunks, and the workers of this machine do these.

The plan has cut each shard into chunks already (macro.py). Of these, `open_chunks` gives the ones without a marker; a
chunk that is done in part, and records that are tried again, are cut again by the same rule. `run_chunks` makes a task
of each chunk and has the workers do all tasks, the costliest first.

Between the two lies a seam, and it is joblib's: `joblib.Parallel` hands the tasks out one by one, as workers come free.
On this side of it are chunks and the run folder, on the other side processes: those of this machine, or of a cluster
that joblib reaches. Each task

- is plain data, which any worker process can be sent;
- ends as parts and a marker in the run folder, whichever worker does it, in whichever order, and however often;
- gives nothing back but its marker: the tally counts it, and ``stop`` says when to end early.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shardkit.plan.chunks import assign_chunks, record_costs
from shardkit.runfolder.ledger import OPEN
from shardkit.workers.tasks import Chunk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import Ledger
    from shardkit.runfolder.others import Others
    from shardkit.runfolder.stop import Stop
    from shardkit.workers.tally import Tally
    from shardkit.workers.work import Workers


def open_chunks(
    ledger: Ledger, retried: np.ndarray, *, workers: int, at_once: int = 1, all_under_shard: int | None = None
) -> list[Chunk]:
    """The chunks that have to be done, the costliest first.

    Args:
        ledger: says which records are open.
        retried: the row numbers of records in quarantine that are tried again.
        workers: how many share the work.
        at_once: how many records each of them is at together.
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
        number = assign_chunks(ledger.bytes[ids], how="dynamic", workers=workers, at_once=at_once)
        chunks += [Chunk(shard, ledger.free_chunk(), ids[number == n], is_planned=False) for n in np.unique(number)]
    return sorted(chunks, key=lambda chunk: -cost_of(ledger, chunk.records))


def cost_of(ledger: Ledger, records: np.ndarray) -> float:
    """What these records are expected to cost together."""
    return float(record_costs(ledger.bytes[records]).sum())


def claimed_last(chunks: list[Chunk], others: Others) -> Iterator[Chunk]:
    """The same chunks, those that other jobs are at after all that they are not at; of these, what they leave."""
    left = []
    for chunk in chunks:
        if chunk.number in others.claimed(chunk.shard):
            left.append(chunk)
        else:
            yield chunk
    yield from (chunk for chunk in left if not others.have_done(chunk.records))


def run_chunks(
    folder: RunFolder,
    pool: Workers,
    chunks: Iterable[Chunk],
    tally: Tally,
    stop: Stop,
    *,
    attempt: Attempt,
    timeout_s: float | None,
    others: Others | None = None,
    ahead: int | None = None,
) -> None:
    """Have the workers do all chunks; returns when each has its parts and its marker, or ``stop`` was asked for.

    Chunks that ``others`` have done by the time that it is their turn are left out. ``ahead`` is how many chunks are
    taken from ``chunks`` before the first has ended.

    A worker that dies costs only its chunk, which is begun again; a record that kills its worker twice goes to the
    quarantine. Chunks that were lost with a node of a cluster are handed out again.
    """
    from joblib import Parallel, delayed

    with pool.working(folder, tally, stop, attempt=attempt, timeout_s=timeout_s, others=others) as work:
        options = ({} if ahead is None else {"pre_dispatch": ahead}) | work.joblib
        while chunks:
            tasks = (delayed(work.do)(work.task(chunk)) for chunk in chunks if not stop.asked)
            parallel = Parallel(pool.size, return_as="generator_unordered", batch_size=1, **options)
            for outcome in parallel(tasks):
                work.done(outcome)
            chunks = work.lost()
