"""Worker processes, each of which may die without harm to the others.

They are forks of a process of their own, not of this one: no ``__main__`` guard is needed, and no lock is copied.
joblib's own executor, loky, is no choice here, because it takes all its workers down when one of them dies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import queue
import shutil
import socket
import tempfile
import time
from typing import TYPE_CHECKING, Any

from shardkit.errors import RunFailed
from shardkit.storage.base import is_remote
from shardkit.workers.board import AHEAD, STOP, Board
from shardkit.workers.channel import Channel, Garbled
from shardkit.workers.deaths import WorkerDied, is_dying
from shardkit.workers.devices import devices_for
from shardkit.workers.forkserver import Start, fork_worker
from shardkit.workers.memory import forget_peak, resident_bytes
from shardkit.workers.replies import reply_of
from shardkit.workers.tasks import fetches, spool_of
from shardkit.workers.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Self

    from shardkit.runfolder.stop import Stop
    from shardkit.workers.board import Slot
    from shardkit.workers.replies import Reply
    from shardkit.workers.tasks import ChunkTask, WorkerSettings

GOODBYE_S = 2.0
DYING_S = 10.0  # for a process that ends by itself, before it counts as one that hangs


class Stopped(Exception):
    """The worker was stopped on purpose, with its chunk unfinished."""


class WorkerProcess:
    """One worker process and this end of its pipe."""

    def __init__(
        self, settings: WorkerSettings, board: Board, number: int, *, environment: dict[str, str] | None = None
    ) -> None:
        self.slot = board.slots[number]
        self.slot.begin_chunk()
        store = settings.places.store
        ours, theirs = socket.socketpair()
        with ours, theirs:
            start = Start.here(number, store, workers=len(board.slots), more=environment)
            self._child = fork_worker(start, [theirs.fileno(), board.descriptor])
            self._channel = Channel(ours.dup())
        self._settings: WorkerSettings | None = settings
        self.is_fresh = True
        self.is_worn = False
        self._made_room = self._is_too_large = False
        self.peak: int | None = None
        self.shared_bytes = 0  # that it had when it was forked: all workers have these together
        self._watch = Watch(self.slot)

    def ask(
        self, task: ChunkTask, *, timeout_s: float | None, stop: Stop, tick: Callable[[], None] = lambda: None
    ) -> Reply:
        """Have a chunk worked on; ``tick`` is called now and then meanwhile.

        Raises:
            WorkerDied: the process ended, or a record took longer than ``timeout_s`` and it was killed.
            Stopped: ``stop`` said so.
            ShardkitError: the worker cannot go on: the function does not load, the disk is full.
        """
        self._introduce(stop)
        self.is_fresh = False
        with contextlib.suppress(OSError, EOFError):
            forget_peak(self._child.pid)
        self._note_peak()
        reply = self._exchange(task, timeout_s, stop, tick)
        self.is_worn = bool(reply["cut"])
        return reply

    def _introduce(self, stop: Stop) -> None:
        """Send the settings to a new worker, and wait until it has loaded the function."""
        if self._settings is not None:
            try:
                self.shared_bytes = resident_bytes(self._child.pid)
            except OSError as error:
                raise _cannot_start(error) from error
            except EOFError:
                raise self._death() from None
            self._exchange(_located(self._settings), None, stop)
            self._settings = None

    def _exchange(
        self, told: Any, timeout_s: float | None, stop: Stop, tick: Callable[[], None] = lambda: None
    ) -> Reply:
        try:
            self._channel.send(pickle.dumps(told))
            return reply_of(self._receive(timeout_s, stop, tick))
        except (EOFError, OSError):  # an OSError that is no ConnectionError: it died in the middle of its reply
            raise self._death(garbled=self._wait()) from None  # one that lives has closed its pipe
        except Garbled:
            self.kill()
            raise self._death(garbled=True) from None

    def _receive(self, timeout_s: float | None, stop: Stop, tick: Callable[[], None]) -> bytes:
        self._watch.begin()
        while (reply := self._channel.receive()) is None:
            tick()
            self._note_peak()
            # Where the function has forked, its children keep the pipe open when the worker is dead.
            if self._child.ending() is not None:
                if (last := self._channel.receive()) is None:
                    raise EOFError
                return last
            if stop.asked:
                self.slot.wish(STOP)
                if stop.out_of_patience:
                    self.kill()
                    raise Stopped
            reading, seconds = self._watch.look()
            if timeout_s is not None and reading.may_hang and seconds > timeout_s:
                if seconds < timeout_s + DYING_S and is_dying(self._child.pid):
                    continue  # what ended it is the cause, which will be known in a moment
                self.kill()
                # It may have gone on to another record in the last moment, which is not to blame then.
                now = self.slot.read()
                raise self._death(timed_out=(now.turn, now.state) == (reading.turn, reading.state))
        return reply

    def _death(self, *, timed_out: bool = False, garbled: bool = False) -> WorkerDied:
        """What to tell of the process, which has ended."""
        reading, seconds = self._watch.look()
        ending = self._child.wait()
        return WorkerDied(
            position=reading.position,
            reached=reading.record,
            several=reading.several if reading.state != AHEAD else (),
            loading=self._settings is not None,
            exit_code=ending.exit_code,
            seconds=seconds,
            timed_out=timed_out,
            garbled=garbled,
            peak_memory_bytes=ending.peak_bytes or self.peak,
            made_room=self._made_room,
            is_too_large=self._is_too_large,
        )

    def _note_peak(self) -> None:
        """Remember how much memory the process has had, for it may end without anybody to tell."""
        with contextlib.suppress(OSError), open(f"/proc/{self._child.pid}/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    self.peak = int(line.split()[1]) * 1024
                    return

    def make_room(self) -> None:
        """End the process, whose memory others need; for any thread."""
        self._made_room = True
        self._child.kill()

    def end_as_too_large(self) -> None:
        """End the process, which takes nearly all the memory there is; for any thread."""
        self._is_too_large = True
        self._child.kill()

    def kill(self) -> None:
        """End the process at once."""
        self._child.kill()
        self._channel.close()

    def hang_up(self) -> None:
        """Let the process end by itself."""
        with contextlib.suppress(OSError, Garbled):
            self._channel.send(pickle.dumps(None))
        self._channel.close()

    def close(self, deadline: float) -> None:
        """See that the process has ended; one that was never asked for anything has nothing to end."""
        if self._settings is not None:
            self._child.forget()
        else:
            self._wait(max(deadline - time.monotonic(), 0.0))

    def _wait(self, patience_s: float = GOODBYE_S) -> bool:
        """Wait for the process's end, which is near, but not for ever; whether it had to be killed."""
        if self._child.ending(timeout_s=patience_s) is not None:
            return False
        self.kill()
        return True

    @property
    def is_spoilt(self) -> bool:
        """Whether it has ended, or said something that nobody asked for, so that it should be asked for nothing."""
        return self._child.ending() is not None or not self._channel.is_clean()

    def prepare(self, stop: Stop) -> None:
        """Have it load the function.

        Raises:
            WorkerDied: it ended meanwhile.
            ShardkitError: the function does not load.
        """
        self._introduce(stop)

    def resident_bytes(self) -> int:
        """The memory that it has now."""
        with contextlib.suppress(OSError, EOFError):
            return resident_bytes(self._child.pid)
        return 0


def _cannot_start(error: OSError) -> RunFailed:
    return RunFailed(
        f"Cannot start a worker process: {error.strerror}.",
        hint="Use fewer workers, or raise the limits on processes and open files; then run or resume.",
    )


def _located(settings: WorkerSettings) -> WorkerSettings:
    """The settings with where the input is, which need not be found out by every worker."""
    if settings.places.store is None:
        return settings
    from shardkit.storage.buckets import located

    return dataclasses.replace(settings, places=settings.places.changed(located))


class WorkerPool:
    """As many workers as the machine shall have; one that is dead, or not begun, begins when it is needed.

    ``begun`` is how many begin at once; by default all.
    """

    def __init__(self, settings: WorkerSettings, size: int, *, begun: int | None = None) -> None:
        self.size = size
        self.fetches = fetches(settings)
        self.inside = settings.inside
        if self.fetches or is_remote(settings.output) or settings.calling.rate_per_s is not None:
            settings = dataclasses.replace(settings, scratch=tempfile.mkdtemp(prefix="shardkit-"))
        self.spool = spool_of(settings)
        self.memory_limit = settings.memory_bytes
        self.leaves = settings.leaves
        self.left: list[int] = []  # records for which there is too little memory here
        self.claims_next = self.fetches or settings.calling.overlaps
        self.chunk_records = settings.calling.chunk_records
        self._settings = settings
        self._devices = devices_for(settings.gpus) if settings.gpus is not None else None
        self._board = Board(size, several=settings.calling.calls_at_once)
        self._idle: queue.LifoQueue[int] = queue.LifoQueue()  # who has just worked comes first: few begin for few calls
        self._workers: list[WorkerProcess | None] = [None] * size
        self._closed = False
        for number in reversed(range(size)):
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
            return WorkerProcess(self._settings, self._board, number, environment=self._environment(number))
        except OSError as error:
            raise _cannot_start(error) from error

    def _environment(self, number: int) -> dict[str, str]:
        """The variables of one worker alone."""
        return {} if self._devices is None else self._devices.environment(number, self._settings.gpus or 1)

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
            if worker is not None and ((fresh and not worker.is_fresh) or worker.is_spoilt):
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
            if worker.is_worn:
                self._workers[number] = None
                worker.kill()
        finally:
            self._idle.put(number)

    def discard_idle(self) -> None:
        """End the workers that have nothing to do; others begin when they are needed."""
        idle = []
        with contextlib.suppress(queue.Empty):
            while True:
                idle.append(self._idle.get_nowait())
        for number in idle:
            if (worker := self._workers[number]) is not None:
                self._workers[number] = None
                worker.kill()
            self._idle.put(number)

    def resident_bytes(self) -> int:
        """The memory that all workers have now."""
        return sum(worker.resident_bytes() for worker in self._workers if worker is not None)

    def held_bytes(self) -> int:
        """The same, what they share counted once."""
        workers = [worker for worker in self._workers if worker is not None]
        shared = [worker.shared_bytes for worker in workers]
        own = [max(worker.resident_bytes() - worker.shared_bytes, 0) for worker in workers]
        return sum(own) + max(shared, default=0)

    def idle_bytes(self, *, all_of_them: bool = False) -> int:
        """The memory that the largest idle worker has now, or ``all_of_them`` together."""
        idle = [self._workers[number] for number in list(self._idle.queue)]
        held = [worker.resident_bytes() for worker in idle if worker is not None]
        return sum(held) if all_of_them else max(held, default=0)

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
        deadline = time.monotonic() + GOODBYE_S
        for worker in self._workers:
            if worker is not None:
                worker.close(deadline)
        self._workers = [None] * self.size
        self._board.close()
        if self._settings.scratch is not None:
            shutil.rmtree(self._settings.scratch, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
