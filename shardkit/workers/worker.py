"""The program of a worker process: it gets chunks, and writes parts and markers.

A worker loads the function once, then takes one chunk after another over a pipe. Before each record it notes on the
board which one it begins, so that the program knows what a dead or hanging worker was working on.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import json
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardkit.errors import ObjectChanged, ObjectDamaged, ObjectRefused, ShardkitError, StorageError
from shardkit.storage.interruption import INTERRUPTION
from shardkit.storage.requests import REPEATS
from shardkit.tracebacks import DEBUGGER
from shardkit.workers.board import GIVE_WAY, REST, STOP, Slot
from shardkit.workers.channel import Garbled, WorkersEnd
from shardkit.workers.chunk_run import ChunkRun
from shardkit.workers.guard import EXIT_CLOSED, EXIT_OUT_OF_MEMORY, Guard, is_used_up
from shardkit.workers.inputs import READ_AHEAD_RECORDS, LocalInputs, open_inputs
from shardkit.workers.output import Output, RecordLog
from shardkit.workers.replies import DESCRIPTORS, LEFT, MEMORY, OTHERS, WORN, plain_error
from shardkit.workers.tasks import arrivals_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.record import Record
    from shardkit.workers.replies import Reply
    from shardkit.workers.tasks import ChunkTask, WorkerSettings

REST_S = 0.02
MUCH_BYTES = 256 << 20  # a chunk that has had so much may leave some of it behind


def work(descriptor: int, board: int, number: int, store: str | None, parent: int) -> None:
    """Work on chunks until the other end of the pipe is closed, or the process ``parent`` ends.

    ``store`` is the kind of store that objects are fetched from.
    """
    channel = WorkersEnd(descriptor)
    os.set_inheritable(descriptor, False)  # noqa: FBT003  the argument is positional-only
    output = Output()
    _settle_in(store, parent)
    slot = Slot.inherited(board, number)
    guard = Guard(descriptor)
    with contextlib.suppress(EOFError, ConnectionError):
        settings: WorkerSettings | None = _receive(channel)
        if settings is None:
            return  # there was no work for this worker
        try:
            worker = _Worker(settings, slot, output, guard, name=f"{socket.gethostname()}-{parent}/{number}")
        except ShardkitError as error:
            channel.send(json.dumps({"error": plain_error(error)}).encode())
            return
        channel.send(b"{}")
        while (task := _receive(channel)) is not None:
            reply = json.dumps(_outcome(worker, guard, task)).encode()
            try:
                channel.send(reply)
            except OSError as error:
                os._exit(guard.blame(error) or 1)


def _receive(channel: WorkersEnd) -> Any:
    """The next message of the program."""
    try:
        return pickle.loads(channel.receive())  # noqa: S301  from our own program
    except Garbled:
        os._exit(EXIT_CLOSED)


def _outcome(worker: _Worker, guard: Guard, task: ChunkTask) -> Reply | dict[str, Any]:
    try:
        return worker.run(task)
    except StorageError as error:
        if harm := guard.blame(error):
            os._exit(harm)  # the storage is not to blame
        return {"error": plain_error(error)}
    except MemoryError:  # while rows were stored; the next attempt will show which record's
        os._exit(EXIT_OUT_OF_MEMORY)


def _settle_in(store: str | None, parent: int) -> None:
    """Set up the process: among others, it dies with its parent, and is the first to be killed when memory runs out."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    INTERRUPTION.watching = False
    sys.breakpointhook = _no_debugger
    atexit.register(gc.freeze)  # otherwise a last garbage collection takes 0.1 s
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        set_process_name("shardkit-worker")
        if os.getppid() != parent:  # it had ended already
            os._exit(1)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("800")
    import pyarrow as pa

    pa.set_cpu_count(1)
    if store is not None:
        from shardkit.storage.buckets import get_ready

        with contextlib.suppress(Exception):  # the first fetch will raise it
            get_ready(store)


def _no_debugger(*_: Any, **__: Any) -> None:
    raise RuntimeError(f"breakpoint(): {DEBUGGER}")


def set_process_name(name: str) -> None:
    """Set the name that ``ps -o comm`` and ``top`` show for this process: at most 15 letters."""
    if sys.platform == "linux":
        pr_set_name = 15
        ctypes.CDLL(None).prctl(pr_set_name, name.encode())


def preload(store: str | None) -> None:
    """Import what every chunk needs, and with a ``store`` what fetches from it."""
    import shardkit.functions
    import shardkit.runfolder.folder
    import shardkit.tables.rows
    import shardkit.workers.large_record
    import shardkit.workers.parts

    if store is not None:
        import obstore.store  # noqa: F401  only so that it is loaded

        import shardkit.storage.objects  # noqa: F401


class _Worker:
    _sleep = staticmethod(time.sleep)  # bound now, because the function may replace it

    def __init__(self, settings: WorkerSettings, slot: Slot, output: Output, guard: Guard, *, name: str) -> None:
        from shardkit.runfolder.folder import RunFolder
        from shardkit.storage.open import folder
        from shardkit.tables.schema import parse_schema

        self._function: Callable[[Record], Any] = settings.function.load()
        self._settings = settings
        self._name = name
        self._names_counted: set[str] = set()
        self._slot = slot
        self._output = output
        self._log = RecordLog()
        self._guard = guard
        self._pid = os.getpid()
        self._schema = parse_schema(settings.schema) if settings.schema else None
        self._folder = RunFolder(folder(settings.output), settings.run_id)
        self._inputs = open_inputs(
            settings.places,
            arrivals_of(settings),
            others=self._folder.some_objects,
        )
        self._expected: tuple[int, int] | None = None
        self._repeats_before = REPEATS.counts()
        self._has_run = False

    def run(self, task: ChunkTask) -> Reply:
        """Work on a chunk and commit it.

        Returns its marker (for a record run alone: its outcome), and why it was cut before its end, if it was.
        """
        run = ChunkRun(
            task,
            self._settings,
            self._schema,
            self._folder,
            self._inputs,
            worker=self._name,
            names=self._names_counted,
        )
        self._look_ahead(task, run)
        self._slot.begin_chunk()
        why = ""
        for i in run.positions():
            if task.alone is None and (i == task.until or self._has_to_stop(task)):
                run.cut(i)
                break
            if task.alone is None and self._slot.wished == GIVE_WAY:
                why = OTHERS
            if i in task.left:
                why = LEFT
            why = why or self._record(run, i, task)
            if why:
                run.cut(i)
                break
            if self._guard.is_crowded:
                why = WORN
                if task.alone is None:
                    run.cut(i + 1)
                break
        self._slot.finish_records()
        if why:
            self._guard.release()
        marker = run.commit(self._repeats())
        if marker["peak_memory_bytes"] > MUCH_BYTES:
            trim_memory()
        return {"marker": marker, "cut": why}

    def _record(self, run: ChunkRun, i: int, task: ChunkTask) -> str:
        """Work on one record; returns why the chunk should be cut before it, if it should run elsewhere."""
        slot = self._slot
        if (settled := task.settled.get(i)) is not None:
            run.take(i, settled)
            slot.end_record(run.bytes[i], failed=settled.failure is not None)
            return ""
        slot.begin_record(i)
        failure: BaseException | None = None
        record, rows = None, 0
        begun = run.times.clock()
        try:
            record = run.record(i)
        except (FileNotFoundError, ObjectChanged, ObjectDamaged, ObjectRefused) as error:
            failure = error
        except StorageError as error:
            if self._has_run and task.alone is None and is_used_up(error):
                return DESCRIPTORS
            raise
        if record is not None:
            had_run, self._has_run = self._has_run, True
            rows, failure = self._call(run, i, record)
            if failure is not None and task.alone is None and (why := _doubt(failure, had_run=had_run)):
                return why
        run.end(i, begun=begun, rows=rows, failure=failure)
        slot.end_record(run.bytes[i], failed=failure is not None)
        return ""

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

    def _repeats(self) -> dict[str, int]:
        """How many requests were repeated since the last chunk, by reason."""
        before, self._repeats_before = self._repeats_before, REPEATS.counts()
        return dict(self._repeats_before - before)

    def _look_ahead(self, task: ChunkTask, run: ChunkRun) -> None:
        """Begin to fetch the objects that this chunk needs, and then the first ones of the next."""
        if isinstance(self._inputs, LocalInputs):
            return
        if self._expected != (task.shard, task.chunk):
            self._inputs.forget()
        self._inputs.expect(run.wanted())
        self._expected = None
        if task.ahead is not None:
            following = task.ahead
            self._expected = (following.shard, following.chunk)
            self._inputs.expect(ChunkRun.wanted_first(following, READ_AHEAD_RECORDS, self._settings.inside))

    def _recover(self) -> None:
        """Undo what the function may have done to the process."""
        if os.getpid() != self._pid:  # the function has forked, and this is the child that has returned from it
            os._exit(0)
        harm = self._guard.harm()
        self._output.mend(descriptors=self._guard.lacks_output)
        if harm:
            os._exit(harm)

    def _has_to_stop(self, task: ChunkTask) -> bool:
        """Whether to commit the chunk as far as it is done; rests first for as long as it is asked to."""
        while self._slot.wished == REST:  # checked again after each rest, because it may be asked again at any moment
            self._rest()
        return task.until is None and self._slot.wished == STOP

    def _rest(self) -> None:
        give_back_memory()
        self._slot.rests = True
        while self._slot.wished == REST:
            self._sleep(REST_S)
        self._slot.rests = False


def _doubt(failure: BaseException, *, had_run: bool) -> str:
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
