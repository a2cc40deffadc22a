"""What runs in a worker process: chunks in, parts and markers out.

A worker loads the function once, then takes one chunk after another over a pipe. Before each record it notes on the
board which one it begins, so that whoever watches knows what a dead or hanging worker was at.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import io
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardkit.board import Slot
from shardkit.errors import ObjectChanged, ObjectRefused, ShardkitError, StorageError
from shardkit.functions import FunctionRef, error_message, user_traceback
from shardkit.inputs import READ_AHEAD_RECORDS, LocalInputs, Wanted, open_inputs
from shardkit.interruption import INTERRUPTION
from shardkit.record import Record
from shardkit.repeats import REPEATS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import pyarrow as pa

    from shardkit.inputs import RemoteInputs, Ticket
    from shardkit.parts import Part
    from shardkit.runfolder import RunFolder
    from shardkit.storage import Access, LocalFolder


EXIT_OUT_OF_MEMORY = 86


@dataclass(frozen=True)
class WorkerSettings:
    """What stays the same for all chunks of a worker.

    ``input_access`` is how a store lets us in; the boto3 session is each worker's own.
    ``scratch`` is a folder for what comes from or goes to another store; None where input and output are both here.
    """

    function: FunctionRef
    input_root: str
    input_access: Access
    output: str
    run_id: str
    scratch: str | None
    by_stem: bool
    schema: dict[str, str] | None


@dataclass
class Settled:
    """What is known of a record before its chunk is worked on again: it failed for good, or its parts are there."""

    failure: dict[str, Any] | None = None
    parts: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class ChunkTask:
    """One chunk's records, or one of them alone.

    ``records`` is an Arrow IPC stream with ``key``, ``main``, ``bytes`` and ``objects``; ``ids`` are the records'
    row numbers in records.parquet, which the marker repeats where they are not a whole planned chunk (``explicit``).
    ``settled`` tells, by position, what need not be run again. The records from position ``until`` on are left to a
    later attempt. ``alone`` is the position of the only record to run, whose outcome is not committed. ``ahead`` is
    the task that the same worker will most likely be given next.
    """

    shard: int
    chunk: int
    attempt: int
    ids: list[int]
    records: bytes
    explicit: bool = False
    settled: dict[int, Settled] = field(default_factory=dict)
    until: int | None = None
    alone: int | None = None
    ahead: ChunkTask | None = None


@dataclass
class Failure:
    """A reply: the worker itself cannot go on (the function does not load, the disk is full)."""

    error: ShardkitError


def work(descriptor: int, board: int, number: int, store: str | None, parent: int) -> None:
    """Serve chunks until the other end of the pipe hangs up, or the process ``parent`` ends.

    ``store`` is the kind that objects are fetched from.
    """
    connection = Connection(descriptor)
    os.set_inheritable(descriptor, False)  # noqa: FBT003  it takes no name
    output = _Output()
    _settle_in(store, parent)
    slot = Slot.inherited(board, number)
    with contextlib.suppress(EOFError, ConnectionError):
        settings: WorkerSettings | None = connection.recv()
        if settings is None:
            return  # there was no work for this one
        try:
            worker = _Worker(settings.function.load(), settings, slot, output)
        except ShardkitError as error:
            connection.send(Failure(error))
            return
        connection.send(None)
        while (task := connection.recv()) is not None:
            connection.send(_outcome(worker, task))


def _outcome(worker: _Worker, task: ChunkTask) -> dict[str, Any] | Failure:
    try:
        return worker.run(task)
    except StorageError as error:
        return Failure(error)
    except MemoryError:  # while rows were stored: which record's, the next attempt will tell
        os._exit(EXIT_OUT_OF_MEMORY)


def _settle_in(store: str | None, parent: int) -> None:
    """Die with the parent, be the first to go when memory runs out."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    INTERRUPTION.watching = False
    atexit.register(gc.freeze)  # at its end a program would look through all it has, for 0.1 s
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        be_called("shardkit-worker")
        if os.getppid() != parent:  # it was faster
            os._exit(1)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("800")
    import pyarrow as pa

    pa.set_cpu_count(1)
    if store is not None:
        from shardkit.stores import get_ready

        with contextlib.suppress(Exception):  # whoever fetches from it will tell
            get_ready(store)


def be_called(name: str) -> None:
    """Have ``ps -o comm`` and ``top`` show the process under a name, of at most 15 letters."""
    if sys.platform == "linux":
        pr_set_name = 15
        ctypes.CDLL(None).prctl(pr_set_name, name.encode())


def preload(store: str | None) -> None:
    """Import what every chunk needs, and with a ``store`` what fetches from it."""
    import shardkit.parts
    import shardkit.rows
    import shardkit.runfolder

    if store is not None:
        import obstore.store  # noqa: F401  only to have it

        import shardkit.objectstore  # noqa: F401


class _Log(io.FileIO):
    """A file that nobody may be reading any more, which is no reason for a print to fail."""

    def write(self, data: Any, /) -> int:
        with contextlib.suppress(OSError):
            return super().write(data)
        return memoryview(data).nbytes


def _text_log(number: int) -> io.TextIOWrapper:
    """One of stdout and stderr, by its number; by lines, for what is held back dies with the worker."""
    raw = io.BufferedWriter(_Log(number, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)


class _Output:
    """Has stdout lead to the parent's stderr, and both stay open whatever the function closes.

    Else the next function to print would fail; or the next file to be opened would get their numbers, and the prints.
    """

    def __init__(self) -> None:
        try:
            self._stderr = os.dup(2)
        except OSError:  # the program was started without one
            self._stderr = os.open(os.devnull, os.O_WRONLY)
        os.dup2(self._stderr, 1)
        self.mend()
        sys.stdout, sys.stderr = _text_log(1), _text_log(2)

    def mend(self) -> None:
        """Open again what is closed."""
        for number in (1, 2):
            try:
                fcntl.fcntl(number, fcntl.F_GETFD)
            except OSError:
                os.dup2(self._stderr, number)
        if getattr(sys.stdout, "closed", False):
            sys.stdout = _text_log(1)
        if getattr(sys.stderr, "closed", False):
            sys.stderr = _text_log(2)


class _Worker:
    def __init__(
        self, function: Callable[[Record], Any], settings: WorkerSettings, slot: Slot, output: _Output
    ) -> None:
        from shardkit.runfolder import RunFolder
        from shardkit.schema import parse_schema
        from shardkit.storage import folder

        self._function = function
        self._settings = settings
        self._slot = slot
        self._output = output
        self._pid = os.getpid()
        self._schema = parse_schema(settings.schema) if settings.schema else None
        self._folder = RunFolder(folder(settings.output), settings.run_id)
        self._inputs = open_inputs(
            settings.input_root,
            arrivals_of(settings),
            settings.input_access,
            others=self._folder.some_objects,
        )
        self._expected: tuple[int, int] | None = None
        self._told = REPEATS.counts()

    def run(self, task: ChunkTask) -> dict[str, Any]:
        """Work on a chunk and commit it; returns its marker (of a record run alone: its outcome)."""
        run = _ChunkRun(task, self._settings, self._schema, self._folder, self._inputs)
        started = time.perf_counter()
        self._look_ahead(task, run)
        slot = self._slot
        slot.begin_chunk()
        for i in run.positions():
            if self._ends_before(i, task):
                run.cut(i)
                break
            if (settled := task.settled.get(i)) is not None:
                run.take(i, settled)
                slot.end_record(run.bytes[i], failed=settled.failure is not None)
                continue
            slot.begin_record(i)
            begun = time.perf_counter()
            try:
                record = run.record(i)
            except (FileNotFoundError, ObjectChanged, ObjectRefused) as error:
                run.end(i, failure=error, seconds=time.perf_counter() - begun)
                slot.end_record(run.bytes[i], failed=True)
                continue
            try:
                result = run.collect(self._function(record), i, record.key)
            except BaseException as error:  # noqa: BLE001  even SystemExit from a record's function costs only that record
                self._recover()
                run.end(i, failure=error, seconds=time.perf_counter() - begun)
                slot.end_record(run.bytes[i], failed=True)
                continue
            self._recover()
            run.writer.add(result)
            run.end(i)
            slot.end_record(run.bytes[i], failed=False)
        slot.finish_records()
        return run.commit(started, self._repeats())

    def _repeats(self) -> dict[str, int]:
        """How many requests have been made again since the last chunk, by the reason."""
        before, self._told = self._told, REPEATS.counts()
        return dict(self._told - before)

    def _look_ahead(self, task: ChunkTask, run: _ChunkRun) -> None:
        """Have the objects fetched that this chunk needs, and then the first ones of the next."""
        if isinstance(self._inputs, LocalInputs):
            return
        if self._expected != (task.shard, task.chunk):
            self._inputs.forget()
        self._inputs.expect(run.wanted())
        self._expected = None
        if task.ahead is not None:
            following = task.ahead
            self._expected = (following.shard, following.chunk)
            self._inputs.expect(_ChunkRun.wanted_first(following, READ_AHEAD_RECORDS))

    def _recover(self) -> None:
        """Undo what the function may have done to the process."""
        if os.getpid() != self._pid:  # it has forked, and the child came back from it as well
            os._exit(0)
        self._output.mend()

    def _ends_before(self, i: int, task: ChunkTask) -> bool:
        """Whether the chunk shall be committed without the records from position ``i`` on."""
        if task.alone is not None:
            return False  # or its record would seem to be done
        return i == task.until if task.until is not None else self._slot.is_asked_to_stop()


class _ChunkRun:
    """One chunk on its way from records to a marker."""

    def __init__(
        self,
        task: ChunkTask,
        settings: WorkerSettings,
        schema: pa.Schema | None,
        folder: RunFolder,
        inputs: LocalInputs | RemoteInputs,
    ) -> None:
        import pyarrow as pa

        from shardkit.parts import PartsWriter
        from shardkit.rows import collect
        from shardkit.runfolder import part_base

        self.task = task
        self.collect = collect
        self._settings = settings
        self._folder = folder
        self._inputs = inputs
        table = pa.ipc.open_stream(task.records).read_all()
        self.keys: list[str] = table["key"].to_pylist()
        self.bytes: list[int] = table["bytes"].to_pylist()
        self._mains: list[int] = table["main"].to_pylist()
        self._objects: list[list[str]] = table["objects"].to_pylist()
        self._etags: list[list[str] | None] = _etags_of(table)
        self._failures: dict[int, dict[str, Any]] = {}
        self._listed = len(self.keys)
        self.writer = PartsWriter(
            (spool_of(settings) or self._folder.files).child(self._folder.parts_of(task.shard)),
            part_base(task.chunk, task.attempt, alone=task.alone),
            schema=schema,
            give_up=lambda result, error: self.fail(result.index, error),
        )

    def record(self, i: int) -> Record:
        root = self._inputs.fetch((self.task.shard, self.task.chunk, i))
        return Record(
            self.keys[i],
            tuple(self._objects[i]),
            main=self._mains[i],
            root=root,
            bytes=self.bytes[i],
            by_stem=self._settings.by_stem,
        )

    def wanted(self) -> Iterator[tuple[Ticket, Wanted]]:
        """The objects of the records that are to be run, in their order."""
        task = self.task
        for i in self.positions():
            if i not in task.settled:
                yield (task.shard, task.chunk, i), Wanted(self._objects[i], self._etags[i], self.bytes[i])

    @staticmethod
    def wanted_first(task: ChunkTask, count: int) -> Iterator[tuple[Ticket, Wanted]]:
        """The same of another task's first records."""
        import pyarrow as pa

        table = pa.ipc.open_stream(task.records).read_all().slice(0, count)
        rows = zip(table["objects"].to_pylist(), _etags_of(table), table["bytes"].to_pylist(), strict=True)
        for i, (objects, etags, size) in enumerate(rows):
            yield (task.shard, task.chunk, i), Wanted(objects, etags, size)

    def end(self, i: int, *, failure: BaseException | None = None, seconds: float | None = None) -> None:
        """A record has had its turn."""
        self._inputs.release((self.task.shard, self.task.chunk, i))
        if failure is not None:
            self.fail(i, failure, seconds=seconds)

    def positions(self) -> Iterable[int]:
        return range(len(self.keys)) if self.task.alone is None else (self.task.alone,)

    def cut(self, i: int) -> None:
        """Leave the records from position ``i`` on to a later attempt."""
        self._listed = i

    def take(self, i: int, settled: Settled) -> None:
        from shardkit.parts import Part

        if settled.failure is not None:
            self._failures[i] = settled.failure
        else:
            self.writer.adopt([Part(**part) for part in settled.parts])

    def fail(self, i: int, error: BaseException, *, seconds: float | None = None) -> None:
        if isinstance(error, MemoryError):  # what the function holds in its variables is in the way of what follows
            traceback.clear_frames(error.__traceback__)
        self._failures[i] = failure_entry(
            record=self.task.ids[i],
            key=self.keys[i],
            bytes=self.bytes[i],
            error=type(error).__name__,
            message=error_message(error),
            traceback=user_traceback(error),
            seconds=seconds,
            attempt=self.task.attempt,
        )

    def commit(self, started: float, repeats: dict[str, int]) -> dict[str, Any]:
        parts: list[Part] = self.writer.close()
        task = self.task
        listed = 1 if task.alone is not None else self._listed
        marker = {
            "shard": task.shard,
            "chunk": task.chunk,
            "attempt": task.attempt,
            "records": {"listed": listed, "done": listed - len(self._failures), "quarantined": len(self._failures)},
            "ids": task.ids[:listed] if task.explicit or listed < len(self.keys) else None,
            "rows": self.writer.rows,
            "bytes_in": sum(self.bytes[:listed]),
            "bytes_out": sum(part.bytes for part in parts),
            "seconds": round(time.perf_counter() - started, 6),
            "peak_memory_bytes": peak_memory_bytes(),
            "repeated": repeats,
            "function_digest": self._settings.function.digest,
            "parts": [part.to_dict() for part in parts],
            "quarantine": [self._failures[i] for i in sorted(self._failures)],
        }
        if task.alone is None and listed and spool_of(self._settings) is None:
            self._folder.write_marker(marker)
        return marker


def _etags_of(table: pa.Table) -> list[list[str] | None]:
    return table["etags"].to_pylist() if "etags" in table.column_names else [None] * len(table)


def arrivals_of(settings: WorkerSettings) -> str | None:
    """Where this worker's objects arrive; None where they are files already."""
    from shardkit.storage import is_remote

    if settings.scratch is None or not is_remote(settings.input_root):
        return None
    return f"{settings.scratch}/input-{os.getpid()}"


def spool_of(settings: WorkerSettings) -> LocalFolder | None:
    """Where parts wait for their upload, which is not the worker's business; None where they go to their place."""
    from shardkit.storage import LocalFolder, is_remote

    if settings.scratch is None or not is_remote(settings.output):
        return None
    return LocalFolder(Path(settings.scratch, "spool"))


def failure_entry(**known: Any) -> dict[str, Any]:
    """One record's entry in the quarantine."""
    entry: dict[str, Any] = dict.fromkeys(
        ("record", "key", "error", "message", "traceback", "seconds", "bytes", "signal", "peak_memory_bytes", "attempt")
    )
    return entry | known


def peak_memory_bytes() -> int:
    """The largest resident size that this process has had, in bytes."""
    with contextlib.suppress(OSError, StopIteration, ValueError):  # not on Linux
        # What getrusage tells here is never less than what the parent had when it started this process.
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
