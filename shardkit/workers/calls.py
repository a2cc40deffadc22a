"""Calls the function on the records of a chunk, one after the other.

Subclasses call it with several records at once (`batch_calls.py`), or several times at once (`async_calls.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import time
import traceback
from typing import TYPE_CHECKING, Any

from shardkit.errors import ObjectChanged, ObjectDamaged, ObjectRefused, StorageError
from shardkit.held import FAILED
from shardkit.workers.board import GIVE_WAY, GO_ON, REST, STOP
from shardkit.workers.guard import is_used_up
from shardkit.workers.output import RecordLog
from shardkit.workers.replies import DESCRIPTORS, LEFT, MEMORY, OTHERS, WORN

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.record import Record
    from shardkit.workers.board import Slot
    from shardkit.workers.chunk_run import ChunkRun
    from shardkit.workers.guard import Guard
    from shardkit.workers.output import Output
    from shardkit.workers.pace import Pace
    from shardkit.workers.tasks import ChunkTask

REST_S = 0.02
MOMENT_S = 0.05  # between two looks at what is wished, while a call waits for its time
OF_THE_RECORD = (FileNotFoundError, ObjectChanged, ObjectDamaged, ObjectRefused)  # while its objects are fetched


class Calls:
    """Calls the function on one record after the other.

    Args:
        function: Takes a record.
        slot: The worker's line on the board.
        output: Its stdout and stderr.
        guard: Looks after its process.
        pace: When the next call may begin; None for at once.
    """

    _sleep = staticmethod(time.sleep)  # bound now, because the function may replace it

    def __init__(
        self, function: Callable[..., Any], slot: Slot, output: Output, guard: Guard, *, pace: Pace | None = None
    ) -> None:
        self._function = function
        self._slot = slot
        self._output = output
        self._guard = guard
        self._pace = pace
        self._log = RecordLog()
        self._pid = os.getpid()
        self._has_run = False

    def chunk(self, run: ChunkRun, task: ChunkTask) -> str:
        """Work on the records of a chunk; returns why it was cut before its end, if the rest should run elsewhere."""
        slot, guard, is_paced = self._slot, self._guard, self._pace is not None
        for i in run.positions():
            is_simple = not (slot.wished or is_paced or i == task.until or i in task.left)
            if not is_simple and (why := self._cut_before(i, task)) is not None:
                run.cut(i)
                return why
            if why := self._record(run, i, task):
                run.cut(i)
                return why
            if guard.is_crowded:
                if task.alone is None:
                    run.cut(i + 1)
                return WORN
        return ""

    def begun(self, task: ChunkTask) -> ChunkRun | None:
        """The chunk of a task, if it has been begun already."""
        return None

    def meanwhile(self, work: Callable[[], Any]) -> Any:
        """Do some other work; what is under way goes on meanwhile."""
        return work()

    def close(self) -> None:
        """End what is still under way."""

    def _record(self, run: ChunkRun, i: int, task: ChunkTask) -> str:
        """Work on one record; returns why the chunk should be cut before it, if it should run elsewhere."""
        slot = self._slot
        if task.settled and self._settled(run, i, task):
            return ""
        slot.begin_record(i)
        failure: BaseException | None = None
        record, rows = None, 0
        begun = run.times.clock()
        try:
            record = run.record(i)
        except OF_THE_RECORD as error:
            failure = error
        except StorageError as error:
            if self._may_run_elsewhere(error, task):
                return DESCRIPTORS
            raise
        if record is not None:
            had_run, self._has_run = self._has_run, True
            rows, failure = self._call(run, i, record)
            if failure is not None and task.alone is None and (why := doubt(failure, had_run=had_run)):
                return why
        run.end(i, begun=begun, rows=rows, failure=failure)
        slot.end_record(run.bytes[i], failed=failure is not None)
        return ""

    def _settled(self, run: ChunkRun, i: int, task: ChunkTask) -> bool:
        """Put on record what is known of a record already; whether anything is."""
        if (settled := task.settled.get(i)) is None:
            return False
        run.take(i, settled)
        self._slot.end_record(run.bytes[i], failed=settled.failure is not None)
        return True

    def _may_run_elsewhere(self, error: StorageError, task: ChunkTask) -> bool:
        """Whether objects could not be fetched for want of descriptors, which earlier records may have used up."""
        return self._has_run and task.alone is None and is_used_up(error)

    def _call(self, run: ChunkRun, i: int, record: Record) -> tuple[int, BaseException | None]:
        """How many rows the function has given, and what it has raised."""
        failure: BaseException | None = None
        large = run.large_record(i)
        self._log.key = record.key
        try:
            result = run.collect(self._function(record), i, record.key, large)
        except BaseException as error:  # noqa: BLE001  even SystemExit from a record's function costs only that record
            failure = error
        self._recover()
        if failure is not None:
            large.drop()
            if large.storage_error is not None:
                raise large.storage_error
            return 0, failure
        run.writer.add(result)
        if record.notes is not None:
            run.note(i, record.notes)
        return result.row_count, None

    def _recover(self) -> None:
        """Undo what the function may have done to the process.

        Raises:
            StorageError: files that it asked for could not be made.
        """
        if os.getpid() != self._pid:  # the function has forked, and this is the child that has returned from it
            os._exit(0)
        harm = self._guard.harm()
        self._output.mend(descriptors=self._guard.lacks_output)
        if harm:
            os._exit(harm)
        if FAILED and not is_used_up(error := FAILED.pop()):  # no record is to blame for a full disk
            raise error

    def _cut_before(self, i: int, task: ChunkTask) -> str | None:
        """Why to commit the chunk as far as it is done; empty if the rest is for later, and not for another worker.

        None to go on with the record at position ``i``: after as many rests as are asked for, and when the pace lets a
        call begin.
        """
        while True:
            wished = self._slot.wished if task.alone is None else GO_ON
            if wished == REST:
                self._rest()
            elif task.alone is None and (i == task.until or (wished == STOP and task.until is None)):
                return ""
            elif wished == GIVE_WAY:
                return OTHERS
            elif i in task.left:
                return LEFT
            elif self._pace is None or i in task.settled or self._pace.waited(MOMENT_S):
                return None

    def _rest(self) -> None:
        give_back_memory()
        self._slot.rests = True
        while self._slot.wished == REST:
            self._sleep(REST_S)
        self._slot.rests = False


def doubt(failure: BaseException, *, had_run: bool) -> str:
    """Why a failed record may succeed elsewhere, with more memory or descriptors; empty if nothing suggests it."""
    if isinstance(failure, MemoryError):
        traceback.clear_frames(failure.__traceback__)  # so that the memory that they hold is free for what follows
        return MEMORY
    return DESCRIPTORS if had_run and is_used_up(failure) else ""


def give_back_memory() -> None:
    """Give free memory back to the system, because another process may need it."""
    gc.collect()
    trim_memory()


def trim_memory() -> None:
    """Give back what nothing uses any more, without looking for more of it."""
    with contextlib.suppress(AttributeError, OSError):  # libraries other than glibc do not have it
        ctypes.CDLL(None).malloc_trim(0)
