"""Worker processes, each of which may die without harm to the others.

They are forks of a process of their own, not of this one: no ``__main__`` guard is needed, and no lock is copied.
joblib's own executor is no choice here, for it takes all its workers down when one of them dies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import shutil
import signal
import socket
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shardkit.board import Board
from shardkit.errors import RunFailed, RunInterrupted
from shardkit.forkserver import Start, fork_worker
from shardkit.storage import is_remote
from shardkit.worker import Failure, spool_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardkit.board import Slot
    from shardkit.worker import ChunkTask, WorkerSettings

TICK_S = 0.1
GOODBYE_S = 2.0


class Stopped(Exception):
    """The worker was stopped on purpose, with its chunk unfinished."""


@dataclass(eq=False)
class WorkerDied(Exception):
    """A worker ended, or was ended, before its chunk did.

    ``position`` is the record that it was at (-1: none), ``seconds`` how long it had been at it; ``loading`` says
    that it had not even loaded the function. Without an ``exit_code`` it was no record's doing: what workers are forked
    from has ended.
    """

    position: int
    loading: bool
    exit_code: int | None
    seconds: float
    timed_out: bool
    peak_memory_bytes: int | None

    @property
    def signal_name(self) -> str | None:
        """The name of the signal that ended it, if one did."""
        if self.exit_code is None or self.exit_code >= 0:
            return None
        with contextlib.suppress(ValueError):
            return signal.Signals(-self.exit_code).name
        return f"signal {-self.exit_code}"


class WorkerProcess:
    """One worker process and this end of its pipe."""

    def __init__(self, settings: WorkerSettings, board: Board, number: int) -> None:
        self.slot = board.slots[number]
        self.slot.begin_chunk()
        store = urlsplit(settings.input_root).scheme if is_remote(settings.input_root) else None
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._child = fork_worker(Start.here(number, store), [theirs.fileno(), board.descriptor])
            self._connection = Connection(ours.detach())
        self._settings: WorkerSettings | None = settings
        self.is_fresh = True
        self._peak: int | None = None

    def ask(self, task: ChunkTask, *, timeout_s: float | None, stop: Stop) -> dict[str, Any]:
        """Have a chunk worked on.

        Raises:
            WorkerDied: the process ended, or a record took longer than ``timeout_s`` and it was killed.
            Stopped: ``stop`` said so.
            ShardkitError: the worker cannot go on: the function does not load, the disk is full.
        """
        try:
            self._introduce(stop)
            self.is_fresh = False
            self._note_peak()
            self._connection.send(task)
            reply: dict[str, Any] = self._receive(timeout_s, stop)
        except (EOFError, OSError):  # an OSError that is no ConnectionError: it died in the middle of its reply
            self._wait()
            raise self._death(timed_out=False) from None
        return reply

    def _introduce(self, stop: Stop) -> None:
        """Send the settings to a new worker, and wait until it has loaded the function."""
        if self._settings is not None:
            try:
                _ = self._child.pid
            except OSError as error:
                raise _cannot_start(error) from error
            self._connection.send(_located(self._settings))
            self._receive(None, stop)
            self._settings = None

    def _receive(self, timeout_s: float | None, stop: Stop) -> Any:
        while not self._connection.poll(TICK_S):
            self._note_peak()
            # Where the function has forked, its children keep the pipe open when the worker is dead.
            if self._child.ending() is not None and not self._connection.poll(0):
                raise EOFError
            if stop.asked:
                self.slot.ask_to_stop()
                if stop.out_of_patience:
                    self.kill()
                    raise Stopped
            reading = self.slot.read()
            if timeout_s is not None and reading.record >= 0 and 0 < reading.started < time.monotonic() - timeout_s:
                self.kill()
                # It may have gone on to another record in the last moment, which is not to blame then.
                now = self.slot.read()
                raise self._death(timed_out=(now.record, now.started) == (reading.record, reading.started))
        reply = self._connection.recv()
        if isinstance(reply, Failure):
            raise reply.error
        return reply

    def _death(self, *, timed_out: bool) -> WorkerDied:
        reading = self.slot.read()
        seconds = time.monotonic() - reading.started if reading.started else 0.0
        loading = self._settings is not None
        ending = self._child.wait()
        position = reading.record if ending.exit_code is not None or timed_out else -1
        return WorkerDied(position, loading, ending.exit_code, seconds, timed_out, ending.peak_bytes or self._peak)

    def _note_peak(self) -> None:
        """Remember how much memory the process has had, for it may end without anybody to tell."""
        with contextlib.suppress(OSError), open(f"/proc/{self._child.pid}/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    self._peak = int(line.split()[1]) * 1024
                    return

    def kill(self) -> None:
        """End the process at once."""
        self._child.kill()

    def hang_up(self) -> None:
        """Let the process end by itself."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._connection.close()

    def close(self) -> None:
        """See that the process has ended; one that was never asked for anything has nothing to end."""
        if self._settings is not None:
            self._child.forget()
        else:
            self._wait()

    def _wait(self) -> None:
        """Wait for the process's end, which is near, but not for ever."""
        if self._child.ending(timeout_s=GOODBYE_S) is None:
            self.kill()


def _cannot_start(error: OSError) -> RunFailed:
    return RunFailed(
        f"Cannot start a worker process: {error.strerror}.",
        hint="Use fewer workers, or raise the limits on processes and open files; then run or resume.",
    )


def _located(settings: WorkerSettings) -> WorkerSettings:
    """The settings with where the input is, which need not be found out by every worker."""
    if not is_remote(settings.input_root):
        return settings
    from shardkit.stores import located

    return dataclasses.replace(settings, input_access=located(settings.input_root, settings.input_access))


class Stop:
    """Whether, why and how urgently the work is to stop."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._deadline: float | None = None

    @property
    def asked(self) -> bool:
        """Whether no more records shall begin."""
        return self.error is not None

    @property
    def out_of_patience(self) -> bool:
        """Whether the records in flight shall be given up."""
        return self._deadline is not None and time.monotonic() > self._deadline

    @property
    def is_urgent(self) -> bool:
        """Whether there is a time by which all work must have stopped."""
        return self._deadline is not None

    def ask(self, error: BaseException, *, patience_s: float | None) -> None:
        """Ask for the end: records in flight may take ``patience_s`` more (None: as long as they need)."""
        if self.error is None or isinstance(error, RunInterrupted):
            self.error = error
        if patience_s is not None:
            self._deadline = time.monotonic() + patience_s


class WorkerPool:
    """As many workers as the machine shall have; one that is dead, or not begun, begins when it is needed.

    ``begun`` is how many begin at once; by default all.
    """

    def __init__(self, settings: WorkerSettings, size: int, *, begun: int | None = None) -> None:
        self.size = size
        self.fetches = is_remote(settings.input_root)
        if self.fetches or is_remote(settings.output):
            settings = dataclasses.replace(settings, scratch=tempfile.mkdtemp(prefix="shardkit-"))
        self.spool = spool_of(settings)
        self._settings = settings
        self._board = Board(size)
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._workers: list[WorkerProcess | None] = [None] * size
        self._closed = False
        for number in range(size):
            self._idle.put(number)
        try:
            self.begin(size if begun is None else begun)
        except BaseException:
            self.close()
            raise

    def begin(self, count: int) -> None:
        """See that so many workers have begun, for there is work for them; before the first is asked for anything."""
        for number in range(min(count, self.size)):
            if self._workers[number] is None:
                self._workers[number] = self._start(number)

    def _start(self, number: int) -> WorkerProcess:
        try:
            return WorkerProcess(self._settings, self._board, number)
        except OSError as error:
            raise _cannot_start(error) from error

    @contextlib.contextmanager
    def worker(self, *, fresh: bool = False) -> Iterator[WorkerProcess]:
        """Borrow an idle worker, or with ``fresh`` one that has not worked yet; it is thrown away if the block raises.

        Raises:
            Stopped: the pool is closed.
        """
        number = self._idle.get()
        try:
            if self._closed:
                raise Stopped
            worker = self._workers[number]
            if worker is not None and fresh and not worker.is_fresh:
                worker.kill()
                worker = None
            if worker is None:
                worker = self._workers[number] = self._start(number)
            try:
                yield worker
            except BaseException:
                self._workers[number] = None
                worker.kill()
                worker.slot.begin_chunk()  # what it had counted is lost with it
                raise
        finally:
            self._idle.put(number)

    def slots(self) -> Sequence[Slot]:
        """All workers' lines on the board."""
        return self._board.slots

    def hang_up(self) -> None:
        """Let all workers end by themselves; nothing can be asked of them any more."""
        for worker in self._workers:
            if worker is not None:
                worker.hang_up()

    def close(self) -> None:
        """End all workers, once the threads that watch over some have let go of them."""
        self._closed = True
        deadline = time.monotonic() + GOODBYE_S
        with contextlib.suppress(queue.Empty):
            for _ in range(self.size):
                self._idle.get(timeout=max(deadline - time.monotonic(), 0))
        self.hang_up()
        for worker in self._workers:
            if worker is not None:
                worker.close()
        self._workers = [None] * self.size
        self._board.close()
        if self._settings.scratch is not None:
            shutil.rmtree(self._settings.scratch, ignore_errors=True)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
