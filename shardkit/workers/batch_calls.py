"""Calls the function with batches of records, while each record fails for itself alone."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any

from shardkit.errors import StorageError
from shardkit.printable import printable
from shardkit.tracebacks import error_message
from shardkit.workers.answers import by_record
from shardkit.workers.calls import OF_THE_RECORD, Calls, doubt
from shardkit.workers.flight import Outcome, drop_failed
from shardkit.workers.replies import DESCRIPTORS, WORN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.record import Record
    from shardkit.workers.chunk_run import ChunkRun
    from shardkit.workers.tasks import ChunkTask


class BatchCalls(Calls):
    """Calls the function with up to ``size`` records at once, and with those of a batch that fails one by one.

    A batch is a list of the next records of a chunk, in their order.
    """

    def __init__(self, *args: Any, size: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._of_many, self._function = self._function, self._of_one
        self._size = size
        self._has_told = False

    def _of_one(self, record: Record) -> Any:
        return by_record(self._of_many([record]), [record])[0]

    def chunk(self, run: ChunkRun, task: ChunkTask) -> str:
        """Work on the records of a chunk; returns why it was cut before its end, if the rest should run elsewhere."""
        for batch in batches_of(run, task, self._size):
            first = batch[0]
            why, end = self._cut_before(first, task), first
            if why is None:
                is_one = len(batch) == 1
                why, end = self._one_by_one(run, batch, task) if is_one else self._batch(run, batch, task)
            if why is not None:
                run.cut(end)
                return why
            if self._guard.is_crowded:
                if task.alone is None:
                    run.cut(end)
                return WORN
        return ""

    def _batch(self, run: ChunkRun, batch: list[int], task: ChunkTask) -> tuple[str | None, int]:
        """Work on a batch; returns why the chunk should be cut, if it should, and up to which position it is done."""
        self._slot.leave_all()
        self._slot.enter(batch[0], len(batch))
        self._slot.begin_several()
        begun = run.times.clock()
        records: dict[int, Record] = {}
        outcomes: dict[int, Outcome] = {}
        for i in batch:
            outcomes[i] = Outcome(begun, begun, large=run.large_record(i))
            try:
                record = run.record(i)
                if record is not None:
                    records[i] = record
            except OF_THE_RECORD as error:
                outcomes[i].failure = error
            except StorageError as error:
                if self._may_run_elsewhere(error, task):
                    return DESCRIPTORS, batch[0]
                raise
        self._has_run = True
        failure = self._call_with(run, records, outcomes) if records else None
        if failure is None:
            self._keep(run, records, outcomes, begun=begun)
            return None, batch[-1] + 1
        if not self._has_told and len(records) > 1:
            self._has_told = True
            warn_of_batch(len(records), records[min(records)].key, failure)
        traceback.clear_frames(failure.__traceback__)  # what they hold may be needed now
        del failure, records, outcomes
        return self._one_by_one(run, batch, task)

    def _call_with(
        self, run: ChunkRun, records: dict[int, Record], outcomes: dict[int, Outcome]
    ) -> BaseException | None:
        """Call the function with the records of a batch, and note their outcomes; returns what it has raised."""
        failure: BaseException | None = None
        several = list(records.values())
        self._log.key = f"{several[0].key} .. {several[-1].key}"
        try:
            for i, given in zip(records, by_record(self._of_many(several), several), strict=True):
                collect_one(run, i, given, records[i].key, outcomes[i])
        except BaseException as error:  # noqa: BLE001  it costs at most the records of the batch
            failure = error
        self._recover()
        for outcome in outcomes.values():
            if failure is not None or outcome.failure is not None:
                drop_failed(outcome)
        return failure

    def _keep(self, run: ChunkRun, records: dict[int, Record], outcomes: dict[int, Outcome], *, begun: float) -> None:
        """Add the rows of a batch to those of the chunk; each record has had its share of the time."""
        each_s = (run.times.clock() - begun) / len(outcomes)
        for number, (i, outcome) in enumerate(outcomes.items()):
            rows = 0
            if outcome.result is not None:
                rows = outcome.result.row_count
                run.writer.add(outcome.result)
                if (notes := records[i].notes) is not None:
                    run.note(i, notes)
            run.release(i)
            at = begun + number * each_s
            run.note_end(i, begun=at, ended=at + each_s, rows=rows, failure=outcome.failure)
            self._slot.end_record(run.bytes[i], failed=outcome.failure is not None)

    def _one_by_one(self, run: ChunkRun, batch: list[int], task: ChunkTask) -> tuple[str | None, int]:
        """Work on the records of a batch by themselves; returns what `_batch` does."""
        self._slot.leave_all()
        for i in batch:
            if len(batch) > 1 and (why := self._cut_before(i, task)) is not None:
                return why, i
            if why := self._record(run, i, task):
                return why, i
        return None, batch[-1] + 1


def collect_one(run: ChunkRun, i: int, given: Any, key: str, outcome: Outcome) -> None:
    """Note the rows that a batch gave for one of its records, or that they are none.

    Raises:
        BaseException: there was not enough memory, or there were no descriptors left.
    """
    try:
        outcome.result = run.collect(given, i, key, outcome.large)
    except BaseException as error:
        if doubt(error, had_run=True):
            raise
        outcome.failure = error


def batches_of(run: ChunkRun, task: ChunkTask, size: int) -> Iterator[list[int]]:
    """The positions that are worked on together; what is settled, or where the work is to end, is by itself."""
    batch: list[int] = []
    for i in run.positions():
        is_apart = i in task.settled or i in task.left or (task.alone is None and i == task.until)
        if batch and (is_apart or len(batch) == size):
            yield batch
            batch = []
        if is_apart:
            yield [i]
        else:
            batch.append(i)
    if batch:
        yield batch


def warn_of_batch(count: int, first: str, failure: BaseException) -> None:
    """Say that a batch has failed: its records take longer now, and perhaps none of them fails."""
    error = f"{type(failure).__name__}: {error_message(failure)}"
    sys.stderr.write(
        f"WARNING shardkit: a batch of {count} records raised {printable(error)} [{printable(first)} ...]. They are "
        "run one by one, and so will be those of later batches that fail.\n"
    )
