"""Worker processes, each of which may die without harm to the others.

joblib's loky starts them: fresh interpreters, not forks, that need no ``__main__`` guard and can be sent functions
by value. They are not its executor's: that one takes all workers down when one of them dies.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from joblib.externals.loky.backend import get_context

from shardkit.board import Board, Slot
from shardkit.worker import ChunkTask, Failure, WorkerSettings, main

if TYPE_CHECKING:
    from collections.abc import Iterator

TICK_S = 0.1
ONE_THREAD = {
    name: "1"
    for name in (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "ARROW_IO_THREADS",
    )
}


class Stopped(Exception):
    """The worker was stopped on purpose, with its chunk unfinished."""


@dataclass(eq=False)
class WorkerDied(Exception):
    """A worker ended, or was ended, before its chunk did.

    ``position`` is the record that it was at (-1: none), ``seconds`` how long it had been at it.
    """

    position: int
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
        self.slot = Slot(board.path, number)
        self.slot.begin_chunk()
        context = get_context("loky")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=main, args=(theirs, settings, board.path, number), name=f"shardkit-worker-{number}", env=_limits()
        )
        self._process.start()
        theirs.close()
        self._greeted = False
        self._peak: int | None = None

    def ask(self, task: ChunkTask, *, timeout_s: float | None, stop: Stop) -> dict[str, Any]:
        """Have a chunk worked on.

        Raises:
            WorkerDied: the process ended, or a record took longer than ``timeout_s`` and it was killed.
            Stopped: ``stop`` said so.
            ShardkitError: the worker cannot go on: the function does not load, the disk is full.
        """
        try:
            if not self._greeted:
                self._receive(None, stop)
                self._greeted = True
            self._connection.send(task)
            reply: dict[str, Any] = self._receive(timeout_s, stop)
            return reply
        except (EOFError, ConnectionError):
            self._process.join(timeout=10)
            raise self._death(timed_out=False) from None

    def _receive(self, timeout_s: float | None, stop: Stop) -> Any:
        while not self._connection.poll(TICK_S):
            self._note_peak()
            if stop.asked:
                self.slot.ask_to_stop()
                if stop.out_of_patience:
                    self.kill()
                    raise Stopped
            reading = self.slot.read()
            if timeout_s is not None and reading.record >= 0 and 0 < reading.started < time.monotonic() - timeout_s:
                self.kill()
                raise self._death(timed_out=True)
        reply = self._connection.recv()
        if isinstance(reply, Failure):
            raise reply.error
        return reply

    def _death(self, *, timed_out: bool) -> WorkerDied:
        reading = self.slot.read()
        seconds = time.monotonic() - reading.started if reading.started else 0.0
        return WorkerDied(reading.record, self._process.exitcode, seconds, timed_out, self._peak)

    def _note_peak(self) -> None:
        """Remember the process's peak memory, for a dead process tells no more."""
        with contextlib.suppress(OSError), open(f"/proc/{self._process.pid}/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    self._peak = int(line.split()[1]) * 1024
                    return

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join(timeout=10)

    def close(self) -> None:
        """Let the process end by itself if it is idle, else end it."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._connection.close()
        self._process.join(timeout=1)
        if self._process.is_alive():
            self.kill()


def _limits() -> dict[str, str]:
    """The environment that keeps the workers together from using more threads than the machine has."""
    return {name: value for name, value in ONE_THREAD.items() if name not in os.environ}


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

    def ask(self, error: BaseException, *, patience_s: float | None) -> None:
        """Ask for the end: records in flight may take ``patience_s`` more (None: as long as they need)."""
        self.error = self.error or error
        if patience_s is not None:
            self._deadline = time.monotonic() + patience_s


class WorkerPool:
    """As many workers as the machine shall have; a dead one is replaced when it is next needed."""

    def __init__(self, settings: WorkerSettings, size: int) -> None:
        self.size = size
        self._settings = settings
        self._board = Board(size)
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._workers: list[WorkerProcess | None] = [None] * size
        self._slots = [Slot(self._board.path, number) for number in range(size)]
        self._lock = threading.Lock()
        for number in range(size):
            self._workers[number] = WorkerProcess(settings, self._board, number)
            self._idle.put(number)

    @contextlib.contextmanager
    def worker(self) -> Iterator[WorkerProcess]:
        """Borrow an idle worker; it is thrown away if the block raises."""
        number = self._idle.get()
        try:
            worker = self._workers[number] or WorkerProcess(self._settings, self._board, number)
            self._workers[number] = worker
            try:
                yield worker
            except BaseException:
                self._workers[number] = None
                worker.kill()
                raise
        finally:
            self._idle.put(number)

    def slots(self) -> list[Slot]:
        """All workers' lines on the board."""
        return self._slots

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            if worker is not None:
                worker.close()
        self._board.close()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
