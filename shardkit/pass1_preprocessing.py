"""Pass 1: records to parts.

As a program it works alone on a plain directory, as the macro/micro-sharding pattern's first script does:

    python -m shardkit.pass1_preprocessing --input GROUP_DIR --output OUT --function module:callable
"""

from __future__ import annotations

import functools
import io
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shardkit.errors import BudgetExceeded, NothingMade, RunInterrupted
from shardkit.micro import Counts, Tally, assign_chunks, record_costs
from shardkit.plan.describe import first_line
from shardkit.runfolder.display import RecordMeter, counted
from shardkit.runfolder.ledger import ELSEWHERE, OPEN, QUARANTINED, Ledger
from shardkit.runfolder.steps import advice
from shardkit.tables.arrays import arrow
from shardkit.workers.lanes import Supervisor
from shardkit.workers.pool import Stop, WorkerPool
from shardkit.workers.tasks import ChunkTask

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    import pyarrow as pa

    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runs.handle import Run
    from shardkit.storage.base import LocalFolder

NOTHING_MADE = "so there is nothing to make a dataset of; what was there stays"


@dataclass(frozen=True)
class WorkLimits:
    """How fast pass 1 may go and how much may fail; none of it changes what is computed.

    ``timeout_s`` is for one record; ``max_failures`` a count, or a share such as ``"1%"``, rounded up.
    """

    workers: int
    timeout_s: float | None
    max_failures: int | str

    def max_quarantined(self, listed: int) -> int:
        """How many of ``listed`` records may fail."""
        if isinstance(self.max_failures, str):
            share = float(self.max_failures.rstrip("% ")) / 100
            return math.ceil(listed * share - 1e-9)
        return self.max_failures


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
    work = _work(ledger, again, workers=pool.size, under=share.shard if share and share.here is not None else None)
    if work:
        stop = Stop()
        before = _before(ledger, again)
        tally = Tally(pool, stop, before=before, max_quarantined=limits.max_quarantined(ledger.planned))
        meter = RecordMeter(ledger.listed, ledger.total_bytes, before, tally.counts)
        records = folder.records(["key", "main", "bytes", "objects", *(["etags"] if pool.fetches else [])])
        with attempt.pass1(tally, stop, meter):
            publish = functools.partial(_publish, folder, pool.spool) if pool.spool is not None else None
            supervisor = Supervisor(pool, stop, tally, timeout_s=limits.timeout_s, publish=publish)
            supervisor.run(_tasks(work, records, attempt.number))
        if isinstance(stop.error, RunInterrupted):
            raise stop.error
        ledger = share.ledger(folder) if share else Ledger(folder)
    check_budget(ledger, limits)
    return ledger


def _publish(folder: RunFolder, spool: LocalFolder, marker: dict[str, Any]) -> None:
    """Upload a chunk's parts, and when they are all there, its marker."""
    home = folder.parts_of(marker["shard"])
    for part in marker["parts"]:
        key = f"{home}/{part['name']}"
        folder.files.put_file(spool.root / key, key)
        spool.remove(key)
    if marker["records"]["listed"]:
        folder.write_marker(marker)


def check_budget(ledger: Ledger, limits: WorkLimits) -> None:
    """See that no more records are quarantined than ``limits`` allow of the whole run.

    Raises:
        BudgetExceeded: there are.
    """
    if ledger.quarantined > limits.max_quarantined(ledger.planned):
        message, hint = over_budget(ledger, limits)
        raise BudgetExceeded(message, hint=hint)


def over_budget(ledger: Ledger, limits: WorkLimits) -> tuple[str, str]:
    """The message and the hint for a run with too much in quarantine."""
    folder, entry = ledger.folder, ledger.quarantine()[0]
    allowed = limits.max_quarantined(ledger.planned)
    share = f"{limits.max_failures} = {allowed:,}" if isinstance(limits.max_failures, str) else f"{allowed:,}"
    message = (
        f"Run {folder.run_id}: {ledger.quarantined:,} of {ledger.listed:,} records are quarantined, more than "
        f"max_failures ({share}) allows. The first is {entry['key']}: {entry['error']}: {first_line(entry['message'])}"
    )
    hint = advice(
        folder,
        lambda step: (
            f"\nSee them all: {step('failures')}\nMend the function, then: {step.retry()}\n"
            f"Or go on as it is: {step('resume', max_failures='100%')}"
        ),
    )
    return message, hint


def check_made(
    ledger: Ledger, rows: int, *, allow_empty: bool, combine: str | None = None, all_may_fail: bool = False
) -> None:
    """See that something came of the records, of which so many ``rows`` are left, perhaps by a ``combine``.

    A function that forgets its ``return`` looks like one that has nothing to say of any record, and must not replace
    a good dataset by an empty one. ``all_may_fail`` says that every record may be in quarantine, as who gives
    ``max_failures`` as a number of records has said, where no dataset is lost by it.

    Raises:
        NothingMade: no record is done; or there is no row, and that is not to be.
    """
    folder, run = ledger.folder, f"Run {ledger.folder.run_id}"
    all_failed = ledger.quarantined > 0 and ledger.quarantined == ledger.listed
    if all_failed and all_may_fail:
        return
    if folder.days is None and all_failed:
        entry = ledger.quarantine()[0]
        raise NothingMade(
            f"{run}: all {counted(ledger.listed, 'record')} are quarantined, {NOTHING_MADE}. "
            f"The first is {entry['key']}: {entry['error']}: {first_line(entry['message'])}",
            hint=advice(
                folder,
                lambda step: f"\nSee them all: {step('failures')}\nMend the function, then: {step.retry()}",
            ),
        )
    if rows or allow_empty:
        return
    done = counted(ledger.done + ledger.skipped, "record")
    what, work = ("the function gave no row", "the function") if combine is None else (f"{combine} left no row", "it")
    raise NothingMade(
        f"{run}: {what} of {done}, {NOTHING_MADE}. Does {work} end with a return or a yield?",
        hint=advice(
            folder,
            lambda step: (
                "\nMend it, and start a new run.\nOr, if there is to be no row, set allow_empty: true in the pipeline, "
                f"and go on: {step('resume', allow_empty=True)}"
            ),
        ),
    )


def _before(ledger: Ledger, again: np.ndarray) -> Counts:
    settled = (ledger.state != OPEN) & (ledger.state != ELSEWHERE)
    settled[again] = False
    return Counts(int(settled.sum()), int(ledger.bytes[settled].sum()), ledger.quarantined - len(again))


def _work(
    ledger: Ledger, again: np.ndarray, *, workers: int, under: int | None = None
) -> list[tuple[int, int, np.ndarray, bool]]:
    """What is to be done, the costliest first: (shard, chunk, record ids, not a whole planned chunk).

    With ``under`` the planned shards and chunks do not count, and all goes under that shard.
    """
    if under is None:
        work, shards = ledger.to_do(), ledger.shard[again]
    else:
        again = np.union1d(again, np.flatnonzero(ledger.state == OPEN))
        work, shards = [], np.full(len(again), under)
    for shard, ids in ledger.apart(again, shards):
        chunk = assign_chunks(ledger.bytes[ids], how="dynamic", workers=workers)
        work += [(shard, ledger.free_chunk(), ids[chunk == c], True) for c in np.unique(chunk)]
    cost = {id(ids): float(record_costs(ledger.bytes[ids]).sum()) for _, _, ids, _ in work}
    return sorted(work, key=lambda item: -cost[id(item[2])])


def _tasks(work: list[tuple[int, int, np.ndarray, bool]], records: pa.Table, attempt: int) -> Iterator[ChunkTask]:
    import pyarrow as pa

    for shard, chunk, ids, explicit in work:
        rows = records.take(arrow(ids)).combine_chunks()
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_table(rows)
        yield ChunkTask(shard, chunk, attempt, ids.tolist(), sink.getvalue(), explicit)


def preprocess(function: str, group: str | os.PathLike[str], output: str | os.PathLike[str], **fields: Any) -> Run:
    """Pass 1 alone: the files of one folder to parts, which lie in ``output`` as plain Parquet files.

    Args:
        function: ``module:callable``.
        group: the folder with the files.
        output: the folder of the parts; its ``_shardkit`` folder tells how the run went.
        fields: any other field of Pipeline, and ``run_id`` and ``quiet``.

    Raises:
        PipelineError, RunFailed, RunInterrupted: as for `shardkit.run`.
    """
    from shardkit.runs.handle import build_pipeline, start_run

    run_id, quiet = fields.pop("run_id", None), fields.pop("quiet", False)
    pipeline = build_pipeline(function, group, output, **fields)
    return start_run(pipeline, run_id=run_id, quiet=quiet, merge=False)


if __name__ == "__main__":
    from shardkit.cli.app import main

    main(["pass1", *sys.argv[1:]])
