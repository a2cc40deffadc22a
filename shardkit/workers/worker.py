"""The program of a worker process: it gets chunks, and writes parts and markers.

A worker loads the function once, then takes one chunk after another over a pipe. Before each record it notes on the
board which one it begins, so that the program knows what a dead or hanging worker was working on.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import json
import os
import pickle
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError, ShardkitError, StorageError
from shardkit.storage.interruption import INTERRUPTION
from shardkit.storage.requests import REPEATS
from shardkit.tracebacks import DEBUGGER
from shardkit.workers.board import Slot
from shardkit.workers.calling import calls_of
from shardkit.workers.calls import trim_memory
from shardkit.workers.channel import Garbled, WorkersEnd
from shardkit.workers.chunk_run import ChunkRun
from shardkit.workers.guard import EXIT_CLOSED, EXIT_OUT_OF_MEMORY, Guard
from shardkit.workers.inputs import READ_AHEAD_RECORDS, LocalInputs, open_inputs
from shardkit.workers.output import Output
from shardkit.workers.replies import plain_error
from shardkit.workers.tasks import arrivals_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.workers.replies import Reply
    from shardkit.workers.tasks import ChunkTask, WorkerSettings

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
        while (task := worker.meanwhile(functools.partial(_receive, channel))) is not None:
            reply = json.dumps(_outcome(worker, guard, task)).encode()
            try:
                channel.send(reply)
            except OSError as error:
                os._exit(guard.blame(error) or 1)
        worker.close()


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
    except PipelineError as error:
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
    import shardkit.storage.places
    import shardkit.tables.origin
    import shardkit.tables.rows
    import shardkit.workers.large_record
    import shardkit.workers.parts

    if store is not None:
        import obstore.store  # noqa: F401  only so that it is loaded

        import shardkit.storage.objects  # noqa: F401


class _Worker:
    def __init__(self, settings: WorkerSettings, slot: Slot, output: Output, guard: Guard, *, name: str) -> None:
        from shardkit.runfolder.folder import RunFolder
        from shardkit.storage.open import folder
        from shardkit.tables.schema import parse_schema

        self._calls = calls_of(settings, slot, output, guard, open_run=self._open)
        self._settings = settings
        self._name = name
        self._names_counted: set[str] = set()
        self._slot = slot
        self._guard = guard
        self._schema = parse_schema(settings.schema) if settings.schema else None
        self._folder = RunFolder(folder(settings.output), settings.run_id)
        self._inputs = open_inputs(
            settings.places,
            arrivals_of(settings),
            others=self._folder.some_objects,
            at_once=settings.calling.at_once,
        )
        self._expected: tuple[int, int] | None = None
        self._repeats_before = REPEATS.counts()

    def run(self, task: ChunkTask) -> Reply:
        """Work on a chunk and commit it.

        Returns its marker (for a record run alone: its outcome), and why it was cut before its end, if it was.
        """
        run = self._calls.begun(task) or self._open(task)
        self._look_ahead(task, run)
        self._slot.begin_chunk()
        why = self._calls.chunk(run, task)
        self._slot.finish_records()
        if why:
            self._guard.release()
        marker = self._calls.meanwhile(functools.partial(run.commit, self._repeats()))
        if marker["peak_memory_bytes"] > MUCH_BYTES:
            trim_memory()
        return {"marker": marker, "cut": why}

    def _open(self, task: ChunkTask) -> ChunkRun:
        folder, names = self._folder, self._names_counted
        return ChunkRun(task, self._settings, self._schema, folder, self._inputs, worker=self._name, names=names)

    def meanwhile(self, work: Callable[[], Any]) -> Any:
        """Do some other work; what is under way goes on meanwhile."""
        return self._calls.meanwhile(work)

    def close(self) -> None:
        """End what is still under way."""
        self._calls.close()

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
