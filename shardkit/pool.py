"""Worker processes, each of which may die without harm to the others.

They are fresh interpreters, not forks: no ``__main__`` guard is needed, and no lock of the parent's is copied.
joblib's own executor is no choice here, for it takes all its workers down when one of them dies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shardkit.board import Board
from shardkit.errors import RunFailed, RunInterrupted
from shardkit.storage import is_remote
from shardkit.worker import Failure, spool_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardkit.board import Slot
    from shardkit.worker import ChunkTask, WorkerSettings

TICK_S = 0.1
GOODBYE_S = 2.0
BOOTSTRAP = (
    "import sys; sys.path[:] = {path}; from shardkit.worker import main; main({fd}, {board}, {number}, {store!r})"
)
# One thread a worker, for there is a worker a CPU; and an allocator that gives back what is freed.
WORKER_ENVIRONMENT = {"ARROW_DEFAULT_MEMORY_POOL": "system"} | dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "ARROW_IO_THREADS",
    ),
    "1",
)


class Stopped(Exception):
    """The worker was stopped on purpose, with its chunk unfinished."""


@dataclass(eq=False)
class WorkerDied(Exception):
    """A worker ended, or was ended, before its chunk did.

    ``position`` is the record that it was at (-1: none), ``seconds`` how long it had been at it; ``loading`` says
    that it had not even loaded the function.
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
        self._parents_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ours, theirs = socket.socketpair()
        with theirs, _no_interrupt():
            fd, shared = theirs.fileno(), board.descriptor
            store = urlsplit(settings.input_root).scheme if is_remote(settings.input_root) else None
            self._process = subprocess.Popen(  # noqa: S603  our own interpreter and code
                [
                    sys.executable,
                    "-c",
                    BOOTSTRAP.format(path=sys.path, fd=fd, board=shared, number=number, store=store),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=[fd, shared],
                env=WORKER_ENVIRONMENT | dict(os.environ),
            )
        self._connection = Connection(ours.detach())
        self._settings: WorkerSettings | None = settings
        self.is_fresh = True
        self._exit_code: int | None = None
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
            self._connection.send(_located(self._settings))
            self._receive(None, stop)
            self._settings = None

    def _receive(self, timeout_s: float | None, stop: Stop) -> Any:
        while not self._connection.poll(TICK_S):
            self._note_peak()
            # Where the function has forked, its children keep the pipe open when the worker is dead.
            if self._reap(wait=False) and not self._connection.poll(0):
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
        return WorkerDied(reading.record, loading, self._exit_code, seconds, timed_out, self._peak)

    def _note_peak(self) -> None:
        """Remember how much memory the process has had: of a dead one, not more than its parent, nobody can tell."""
        with contextlib.suppress(OSError), open(f"/proc/{self._process.pid}/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    self._peak = int(line.split()[1]) * 1024
                    return

    def _reap(self, *, wait: bool = True) -> bool:
        """Take note of the process's end: how it ended, and how much memory it had had. Says whether it has ended."""
        if self._exit_code is None:
            with contextlib.suppress(ChildProcessError):  # somebody else has waited for it
                pid, status, usage = os.wait4(self._process.pid, 0 if wait else os.WNOHANG)
                if pid == 0:
                    return False
                self._exit_code = os.waitstatus_to_exitcode(status)
                # A process begins with its parent's peak; what is not above that tells less than was noted before.
                if usage.ru_maxrss > self._parents_peak:
                    self._peak = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
            self._process.returncode = self._exit_code if self._exit_code is not None else -signal.SIGKILL
        return True

    def kill(self) -> None:
        """End the process at once."""
        if not self._reap(wait=False):
            with contextlib.suppress(ProcessLookupError):  # another thread was faster
                os.kill(self._process.pid, signal.SIGKILL)
            self._reap()

    def hang_up(self) -> None:
        """Let the process end by itself."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._connection.close()

    def close(self) -> None:
        """See that the process has ended; one that was never asked for anything has nothing to end."""
        if self._settings is not None:
            self.kill()
        self._wait()

    def _wait(self) -> None:
        """Wait for the process's end, which is near, but not for ever."""
        deadline = time.monotonic() + GOODBYE_S
        while not self._reap(wait=False):
            if time.monotonic() > deadline:
                self.kill()
            time.sleep(0.005)


def _located(settings: WorkerSettings) -> WorkerSettings:
    """The settings with where the input is, which need not be found out by every worker."""
    if not is_remote(settings.input_root):
        return settings
    from shardkit.stores import located

    return dataclasses.replace(settings, input_access=located(settings.input_root, settings.input_access))


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Have processes that are started in the block begin deaf to Ctrl-C, which is the parent's to deal with."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
            raise RunFailed(
                f"Cannot start a worker process: {error.strerror}.",
                hint="Use fewer workers, or raise the limits on processes and open files; then run or resume.",
            ) from error

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
