"""How many workers are at work at once: fewer when memory is short, one while a record has to prove itself."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from shardkit.workers.board import GIVE_WAY, GO_ON, REST
from shardkit.workers.memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.runfolder.stop import Stop
    from shardkit.workers.deaths import WorkerDied
    from shardkit.workers.pool import WorkerProcess

LOOK_S = 0.02
FIRST_PAUSE_S = 5.0  # after a death for want of memory, until one more worker is let in
LONGEST_PAUSE_S = 600.0


class Turn:
    """One worker at work, or about to be."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.worker: WorkerProcess | None = None
        self._wish = GO_ON

    def takes(self, worker: WorkerProcess) -> None:
        """It is this worker's."""
        self.worker = worker
        worker.slot.wish(self._wish)

    def wish(self, wish: int) -> None:
        """Tell its worker whether it may go on after the present record."""
        self._wish = wish
        if self.worker is not None:
            self.worker.slot.wish(wish)

    def is_idle(self) -> bool:
        """Whether no record is at work here, and none will begin before it is wished."""
        return self.worker is None or self.worker.slot.rests

    def tick(self) -> None:
        """Let more workers in, if it is time."""
        self._gate.look()


class Gate:
    """Lets workers take turns: at most ``limit`` at once, and for a record that has to prove itself none beside it.

    The limit falls when a worker dies for want of memory, as far as what the workers have had by then says, and rises
    by one after a pause, which is longer after each such death.
    """

    def __init__(self, size: int) -> None:
        self._size = self.limit = size
        self._changed = threading.Condition()
        self._running: list[Turn] = []
        self._alone: Turn | None = None
        self._asking = 0  # for being alone
        self._clearing = False
        self._pause_s = FIRST_PAUSE_S
        self._next_rise = 0.0

    @contextlib.contextmanager
    def turn(self, stop: Stop) -> Iterator[Turn]:
        """A turn beside others; waits until there is room, or the work is to stop."""
        turn = Turn(self)
        with self._changed:
            while not stop.asked and (self._alone or self._asking or len(self._running) >= self.limit):
                self._changed.wait(LOOK_S)
                self._rise()
            self._running.append(turn)
            self._update()
        try:
            yield turn
        finally:
            with self._changed:
                self._running.remove(turn)
                if turn.worker is not None:
                    turn.worker.slot.wish(GO_ON)
                self._update()

    @contextlib.contextmanager
    def alone(self, stop: Stop, *, cleared: bool = False) -> Iterator[Turn]:
        """A turn while all other workers are idle, and with ``cleared`` have ended what they are at.

        Raises:
            Stopped: there is no time left for that.
        """
        from shardkit.workers.pool import Stopped

        turn = Turn(self)
        with self._changed:
            self._asking += 1
            try:
                while self._alone or not self._is_quiet(cleared=cleared):
                    if stop.out_of_patience:
                        raise Stopped
                    if self._alone is None:
                        self._clearing = self._clearing or cleared
                        self._update()
                    self._changed.wait(LOOK_S)
                self._alone = turn
            finally:
                self._asking -= 1
                self._clearing = False
                self._update()
        try:
            yield turn
        finally:
            with self._changed:
                self._alone = None
                self._update()

    def look(self) -> None:
        """Let more workers in, if it is time."""
        if self.limit < self._size:
            with self._changed:
                self._rise()

    def lower(self, death: WorkerDied) -> int:
        """Let fewer in, for a worker died for want of memory, it seems; returns how many could be in before."""
        with self._changed:
            before = self.limit
            workers = [turn.worker for turn in self._running if turn.worker is not None]
            peaks = [peak for peak in (death.peak_memory_bytes, *(worker.peak for worker in workers)) if peak]
            room = available_bytes()
            fitting = self._size
            if room is not None and peaks:
                fitting = (room + sum(worker.resident_bytes() for worker in workers)) // max(peaks)
            self.limit = max(1, min(fitting, len(workers), self.limit))
            self._next_rise = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._update()
            return before

    def restore(self, limit: int) -> None:
        """Let as many in as before: the record dies alone too, which says nothing of how many can be at work."""
        with self._changed:
            self.limit = max(self.limit, limit)
            self._pause_s = max(self._pause_s / 2, FIRST_PAUSE_S)
            self._update()

    def _is_quiet(self, *, cleared: bool) -> bool:
        return not self._running if cleared else all(turn.is_idle() for turn in self._running)

    def _rise(self) -> None:
        if self.limit < self._size and time.monotonic() >= self._next_rise and self._has_room():
            self.limit += 1
            self._next_rise = time.monotonic() + self._pause_s
            self._update()

    def _has_room(self) -> bool:
        """Whether one more worker fits, if it and those at work come to have as much as the largest of them has had."""
        workers = [turn.worker for turn in self._running if turn.worker is not None]
        peak, room = max((worker.peak or 0 for worker in workers), default=0), available_bytes()
        if room is None or not peak:
            return True
        return room + sum(worker.resident_bytes() for worker in workers) >= peak * (len(workers) + 1)

    def _update(self) -> None:
        """Tell each worker what it may do; the caller holds the lock."""
        for number, turn in enumerate(self._running):
            if self._clearing:
                turn.wish(GIVE_WAY)
            else:
                turn.wish(REST if self._alone or self._asking or number >= self.limit else GO_ON)
        self._changed.notify_all()


def holds_much(others: int, death: WorkerDied) -> bool:
    """Whether what idle workers hold may have made the difference to one that died."""
    return others * 20 >= (death.peak_memory_bytes or 0)
