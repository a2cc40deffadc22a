"""Pass 1: records to parts.

As a program it works alone on a plain directory, as the macro/micro-sharding pattern's first script does:

    python -m shardkit.pass1_preprocessing --input GROUP_DIR --output OUT --function module:callable
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shardkit.errors import RunInterrupted
from shardkit.micro import open_chunks, run_chunks
from shardkit.runfolder.ledger import ELSEWHERE, OPEN, QUARANTINED, Ledger
from shardkit.runfolder.limits import WorkLimits, check_budget
from shardkit.runfolder.meters import Counts, RecordMeter
from shardkit.runfolder.stop import Stop
from shardkit.workers.tally import Tally

if TYPE_CHECKING:
    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.folder import RunFolder
    from shardkit.workers.pool import WorkerPool


@dataclass(frozen=True)
class Share:
    """What one instance of a job works on.

    ``shard`` is its own of the job's ``shards``. Where the service has dealt the objects out, what is ``here`` counts,
    a mask of the run's records, whatever shard they were planned for; the work goes under the own one all the same.
    """

    shards: list[int]
    shard: int
    here: np.ndarray | None = None

    def ledger(self, folder: RunFolder) -> Ledger:
        """The ledger of these records; another instance may have committed them, when objects were dealt out."""
        ledger = Ledger(folder, self.shards)
        ledger.keep(ledger.shard == self.shard if self.here is None else self.here)
        return ledger


def run_pass1(
    folder: RunFolder,
    pool: WorkerPool,
    limits: WorkLimits,
    attempt: Attempt,
    *,
    retry: bool = False,
    fresh: bool = False,
    share: Share | None = None,
) -> Ledger:
    """Work on all records that are open, and with ``retry`` on those in quarantine too; returns the ledger then.

    With ``share`` it works on that alone, as one of several instances does. ``fresh`` says that the run has just been
    planned.

    Raises:
        BudgetExceeded: more records failed than ``limits`` allow.
        RunInterrupted: by Ctrl-C or SIGTERM.
        StorageError, RunFailed: the run cannot go on; what is committed is kept.
    """
    ledger = share.ledger(folder) if share else Ledger(folder, fresh=fresh)
    folder.check_records()
    for name in ledger.damaged:
        attempt.progress.note(f"{folder.uri}/{name} is damaged; its chunk is not done, and is computed again.")
        folder.files.remove(name)
    again = np.flatnonzero(ledger.state == QUARANTINED) if retry else np.zeros(0, np.int64)
    under = share.shard if share and share.here is not None else None
    if chunks := open_chunks(ledger, again, workers=pool.size, under=under):
        stop, before = Stop(), _before(ledger, again)
        tally = Tally(pool, stop, before=before, max_quarantined=limits.max_quarantined(ledger.planned))
        with attempt.pass1(tally, stop, RecordMeter(ledger.listed, ledger.total_bytes, before, tally.counts)):
            run_chunks(folder, pool, chunks, tally, stop, attempt=attempt.number, timeout_s=limits.timeout_s)
        if isinstance(stop.error, RunInterrupted):
            raise stop.error
        ledger = share.ledger(folder) if share else Ledger(folder)
    check_budget(ledger, limits)
    return ledger


def _before(ledger: Ledger, again: np.ndarray) -> Counts:
    settled = (ledger.state != OPEN) & (ledger.state != ELSEWHERE)
    settled[again] = False
    return Counts(int(settled.sum()), int(ledger.bytes[settled].sum()), ledger.quarantined - len(again))


if __name__ == "__main__":
    from shardkit.cli.app import main

    main(["pass1", *sys.argv[1:]])
