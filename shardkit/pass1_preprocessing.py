"""Pass 1: the user's function is called on every record, and its rows become parts in the run folder.

    records --micro.py--> chunks --workers/--> parts + markers --runfolder/ledger.py--> ledger

It does what has no marker yet. So it is the same function that begins a run and that goes on with one after a crash. A
run on this machine calls it for all shards (runs/here.py), a Processing job for its own (runs/container/job.py).

As a program it works alone on a plain directory, as the macro/micro-sharding pattern's first script does:

    python -m shardkit.pass1_preprocessing --input GROUP_DIR --output OUT --function module:callable
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import numpy as np

from shardkit.errors import RunInterrupted
from shardkit.micro import claimed_last, open_chunks, run_chunks
from shardkit.runfolder.ledger import QUARANTINED, Ledger
from shardkit.runfolder.limits import WorkLimits, check_budget
from shardkit.runfolder.meters import Counts, RecordMeter
from shardkit.runfolder.others import Others
from shardkit.runfolder.stop import Stop
from shardkit.workers.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.share import Share
    from shardkit.workers.tasks import Chunk
    from shardkit.workers.work import Workers


def run_pass1(
    folder: RunFolder,
    pool: Workers,
    limits: WorkLimits,
    attempt: Attempt,
    *,
    retry: bool = False,
    fresh: bool = False,
    share: Share | None = None,
) -> Ledger:
    """Work on all records that are open; returns the ledger as it is afterwards.

    Args:
        folder: the run's.
        pool: the workers.
        limits: how long a record may take, and how many may fail.
        attempt: shows how far it is, and keeps the heartbeat.
        retry: work on the records in quarantine, too.
        fresh: the run has just been planned, so that there can be no markers.
        share: work on this alone, as one of several instances does.

    Raises:
        BudgetExceeded: more records failed than ``limits`` allow.
        RunInterrupted: by Ctrl-C or SIGTERM.
        StorageError, RunFailed: the run cannot go on; what is committed is kept.
    """
    # The markers say what is done. A damaged marker does not count, so its chunk is open again.
    ledger = share.ledger(folder) if share else Ledger(folder, fresh=fresh)
    folder.check_records()
    for name in ledger.damaged:
        attempt.progress.note(f"{folder.uri}/{name} is damaged; its chunk is not done, and is computed again.")
        folder.files.remove(name)

    # What is left to do, in chunks.
    retried = np.flatnonzero(ledger.state == QUARANTINED) if retry else np.zeros(0, np.int64)
    own_shard = share.shard if share and share.here is not None else None
    chunks = open_chunks(ledger, retried, workers=pool.size, at_once=pool.chunk_records, all_under_shard=own_shard)

    # Do it. Too many failures, a signal or a full disk ask for the end through `stop`; whole chunks are kept.
    while chunks:
        stop, done_before = Stop(), _done_before(ledger, retried)
        tally = Tally(pool.slots(), stop, before=done_before, max_quarantined=limits.max_quarantined(ledger.planned))
        meter = RecordMeter(ledger.listed, ledger.total_bytes, done_before, tally.counts)
        with attempt.pass1(tally, stop, meter), _claimed(ledger, chunks, tally, attempt, share) as (others, in_order):
            timeout_s = limits.timeout_s
            run_chunks(folder, pool, in_order, tally, stop, attempt=attempt, timeout_s=timeout_s, others=others)
        if isinstance(stop.error, RunInterrupted):
            raise stop.error
        ledger = share.ledger(folder) if share else Ledger(folder)
        chunks = _left_by_others(ledger, stop, attempt, pool) if others is not None and not pool.left else []

    check_budget(ledger, limits)
    return ledger


@contextlib.contextmanager
def _claimed(
    ledger: Ledger, chunks: list[Chunk], tally: Tally, attempt: Attempt, share: Share | None
) -> Iterator[tuple[Others | None, Iterable[Chunk]]]:
    """Look at what other jobs do of these chunks, if any may; and the chunks, those that are claimed last."""
    if share is None or not share.may_be_claimed:
        yield None, chunks
        return
    others = Others(ledger, attempt.name)
    for shard in {chunk.shard for chunk in chunks}:
        records = [chunk.records for chunk in chunks if chunk.shard == shard]
        others.watch(shard, np.concatenate(records), ledger.names)
    if attempt.number > 1:  # before that, nobody can have claimed anything
        others.look()
    with others.watching(tally.add_of_others):
        yield others, claimed_last(chunks, others)


def _left_by_others(ledger: Ledger, stop: Stop, attempt: Attempt, pool: Workers) -> list[Chunk]:
    """What is open although all has been done: of a chunk that two jobs have done, neither has all that was counted."""
    if not ledger.open or stop.asked:
        return []
    attempt.go_on_as_next("Chunks that another job seemed to have done are open")  # names of this number are taken
    return open_chunks(ledger, np.zeros(0, np.int64), workers=pool.size, at_once=pool.chunk_records)


def _done_before(ledger: Ledger, retried: np.ndarray) -> Counts:
    """How far the run is before this attempt."""
    settled = ledger.is_settled()
    settled[retried] = False
    return Counts(int(settled.sum()), int(ledger.bytes[settled].sum()), ledger.quarantined - len(retried))


if __name__ == "__main__":
    from shardkit.__main__ import main

    main(["pass1", *sys.argv[1:]])
