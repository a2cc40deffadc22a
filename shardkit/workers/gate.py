"""How many workers are at work at once: as many as fit into memory, and one while a record has to prove itself."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from shardkit.workers.board import GIVE_WAY, GO_ON, REST
from shardkit.workers.memory import Memory
from shardkit.workers.needs import Needs
from shardkit.workers.neighbours import END, NOTHING
from shardkit.workers.neighbours import REST as PAUSE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.runfolder.stop import Stop
    from shardkit.workers.deaths import WorkerDied
    from shardkit.workers.memory import Room
    from shardkit.workers.neighbours import Neighbours
    from shardkit.workers.pool import WorkerPool, WorkerProcess

LOOK_S = 0.02
FIRST_PAUSE_S = 5.0  # after a death for want of memory, until one more worker is let in
LONGEST_PAUSE_S = 600.0
MARGIN = 0.05  # of the memory that there is, kept free
MOST_MARGIN = 4 << 30
FASTEST_GROWTH = 4e9  # bytes a second that one worker may come to hold
SHORTEST_S, LONGEST_S = 0.05, 1.0  # between two looks at the memory
MORE = 1.5  # times of what it had is expected of a chunk that was ended on the way
RELIEF_S = 0.3  # for memory to be given back after something was done for it
PLENTY = 2.0  # times of what all workers are expected to hold


class Turn:
    """One worker at work, or about to be, on a chunk that is expected to make it hold so many bytes."""

    def __init__(self, gate: Gate, expected: int) -> None:
        self._gate = gate
        self._expected = expected
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

    @property
    def need(self) -> int:
        """The most bytes that its worker has held, or is expected to hold."""
        return max(self._expected, (self.worker.peak or 0) if self.worker is not None else 0)

    def is_idle(self) -> bool:
        """Whether no record is at work here, and none will begin before it is wished."""
        return self.worker is None or self.worker.slot.rests

    def tick(self) -> None:
        """Look after the memory, and let more workers in, if it is time."""
        self._gate.look()


class Gate:
    """Lets workers take turns: as many at once as fit into memory, and for a record that has to prove itself one.

    How much a chunk will need is learnt from those before it. Where that was too little, the last that was let in makes
    room for the others before the system kills any of them. Where a worker dies for want of memory all the same,
    at most ``limit`` work from then on, as far as what they have had by then says; it rises by one after a pause, which
    is longer after each such death.

    Other processes of the machine, the ``neighbours``, heed each other: a record proves itself while all of them pause,
    and a chunk that is known to need more than is left waits until it is the only one.
    """

    def __init__(self, pool: WorkerPool, neighbours: Neighbours | None = None) -> None:
        self._pool = pool
        self._neighbours = neighbours
        self._wished = NOTHING  # by one of them
        self._size = self.limit = pool.size
        self._memory = Memory(pool.memory_limit)
        self._needs = Needs()
        self._changed = threading.Condition()
        self._running: list[Turn] = []
        self._alone: Turn | None = None
        self._asking = 0  # for being alone
        self._clearing = False
        self._fitting = self._size
        self._pause_s = FIRST_PAUSE_S
        self._next_rise = 0.0
        self._next_look = self._next_try = self._next_heed = 0.0
        self._plenty_until, self._plenty = 0.0, 0.0

    # ---- turns ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def turn(self, stop: Stop, *, record_bytes: int = 0) -> Iterator[Turn]:
        """A turn beside others, for a chunk whose largest record has so many bytes; waits until there is room.

        It does not wait once the work is to stop.
        """
        expected = self._needs.expected(record_bytes)
        turn = Turn(self, expected)
        with self._changed:
            while not stop.asked and not (self._may_enter(expected) and self._joins(expected)):
                self._changed.wait(LOOK_S)
                self._heed_neighbours()
                self._rise()
                expected = turn._expected = self._needs.expected(record_bytes)  # noqa: SLF001
            self._running.append(turn)
            self._update()
        try:
            yield turn
        finally:
            with self._changed:
                self._running.remove(turn)
                if turn.worker is not None:
                    turn.worker.slot.wish(GO_ON)
                self._next_try = 0.0
                if self._neighbours is not None and not self._running:
                    self._neighbours.leave()
                self._update()

    @contextlib.contextmanager
    def alone(self, stop: Stop, *, cleared: bool = False) -> Iterator[Turn]:
        """A turn while all other workers are idle, and with ``cleared`` have ended what they are at.

        Raises:
            Stopped: there is no time left for that.
        """
        from shardkit.workers.pool import Stopped

        turn = Turn(self, 0)
        with self._changed:
            self._asking += 1
            try:
                while self._alone or not (self._is_quiet(cleared=cleared) and self._has_machine(cleared=cleared)):
                    if stop.out_of_patience:
                        raise Stopped
                    if self._alone is None:
                        self._clearing = self._clearing or cleared
                        self._update()
                    self._changed.wait(LOOK_S)
                    self._heed_neighbours()
                self._alone = turn
            finally:
                self._asking -= 1
                self._clearing = False
                if self._alone is None:
                    self._give_back()
                self._update()
        try:
            yield turn
        finally:
            with self._changed:
                self._alone = None
                self._give_back()
                self._update()

    def _may_enter(self, expected: int) -> bool:
        if self._alone or self._asking or len(self._running) >= self.limit:
            return False
        now = time.monotonic()
        if not expected or not self._running or (now < self._plenty_until and expected <= self._plenty):
            return True
        if now < self._next_try:
            return False
        fits = self._has_room(expected)
        self._next_try = 0.0 if fits else now + SHORTEST_S
        return fits

    def _is_quiet(self, *, cleared: bool) -> bool:
        return not self._running if cleared else all(turn.is_idle() for turn in self._running)

    def _update(self) -> None:
        """Tell each worker what it may do; the caller holds the lock."""
        at_once = min(self.limit, self._fitting)
        takes_part = self._neighbours is None or self._neighbours.takes_part
        all_rest = self._alone or self._asking or self._wished or not takes_part
        for number, turn in enumerate(self._running):
            if self._clearing or self._wished == END:
                turn.wish(GIVE_WAY)
            else:
                turn.wish(REST if all_rest or number >= at_once else GO_ON)
        self._changed.notify_all()

    # ---- other processes of the machine --------------------------------------------------------------------------

    def _joins(self, expected: int) -> bool:
        """Whether a worker may be at work beside those of the neighbours; then this process takes part."""
        if self._neighbours is None or self._neighbours.takes_part:
            return True
        if self._neighbours.wish_of_others():
            return False
        room = self._room() if expected else None
        fits = room is None or room.left + self._pool.idle_bytes() - _margin(room) >= expected
        return self._neighbours.enter(as_first=not fits)

    def _heed_neighbours(self) -> None:
        """Pause, or go on, as one of the neighbours wishes; the caller holds the lock."""
        if self._neighbours is None or self._alone:
            return
        wished = self._neighbours.wish_of_others()
        if wished != self._wished:
            self._wished = wished
            if wished == END:
                self._pool.discard_idle()
            self._update()
        if wished and self._is_quiet(cleared=wished == END):
            self._neighbours.leave()
        elif not wished and not self._asking and self._running and not self._neighbours.takes_part:
            self._neighbours.enter()
            self._update()

    def _has_machine(self, *, cleared: bool) -> bool:
        """Whether no worker of a neighbour is at work either, and with ``cleared`` none has anything to do."""
        if self._neighbours is None:
            return True
        return self._neighbours.wish(END if cleared else PAUSE) and self._neighbours.have_all()

    def _give_back(self) -> None:
        """The machine belongs to the neighbours as well again."""
        if self._neighbours is not None:
            self._neighbours.give_back()

    # ---- memory --------------------------------------------------------------------------------------------------

    def learn(self, record_bytes: int, peak_bytes: int) -> None:
        """A chunk whose largest record has so many bytes has made its worker hold so many."""
        with self._changed:
            self._needs.learn(record_bytes, peak_bytes)

    def learn_of_unfinished(self, record_bytes: int, death: WorkerDied) -> None:
        """The same of a chunk whose worker had to make room: it needs more than it had by then."""
        self.learn(record_bytes, int(MORE * (death.peak_memory_bytes or 0)))

    def look(self) -> None:
        """Look after the memory and let more workers in, if it is time."""
        now = time.monotonic()
        if self._neighbours is not None and now >= self._next_heed:
            self._next_heed = now + SHORTEST_S
            with self._changed:
                self._heed_neighbours()
        if now < self._next_look:
            return
        with self._changed:
            now = time.monotonic()
            if now < self._next_look:
                return
            room = self._room()
            self._next_look = now + _until_next(room, self._size)
            if room is None:
                self._rise()
                return
            self._plenty_until, self._plenty = now + LONGEST_S, room.left / (PLENTY * self._size)
            if room.left + room.swap < _margin(room) and self._relieve(room):
                self._next_look = now + RELIEF_S
            self._rise()
            needs = [turn.need for turn in self._running]
            all_fit = max(needs, default=0) <= self._plenty
            many = len(needs) if all_fit else self._how_many_fit(room, needs)
            fitting = many if many < len(needs) else self._size
            if fitting != self._fitting:
                self._fitting = fitting
                self._update()

    def lower(self, death: WorkerDied) -> int:
        """Let fewer in, for a worker died for want of memory, it seems; returns how many could be in before."""
        with self._changed:
            before = self.limit
            workers = [turn.worker for turn in self._running if turn.worker is not None]
            peaks = [peak for peak in (death.peak_memory_bytes, *(worker.peak for worker in workers)) if peak]
            room = self._room()
            fitting = self._size
            if room is not None and peaks:
                fitting = (room.left + sum(worker.resident_bytes() for worker in workers)) // max(peaks)
            self.limit = max(1, min(fitting, len(workers), self.limit))
            self._next_rise = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._next_look = self._plenty_until = 0.0
            self._update()
            return before

    def restore(self, limit: int) -> None:
        """Let as many in as before: the record dies alone too, which says nothing of how many can be at work."""
        with self._changed:
            self.limit = max(self.limit, limit)
            self._pause_s = max(self._pause_s / 2, FIRST_PAUSE_S)
            self._update()

    @property
    def memory_bytes(self) -> int:
        """How much memory there is, where it is the least; 0 if the system does not say."""
        room = self._room()
        return room.most if room is not None else 0

    def was_memory(self, death: WorkerDied) -> int:
        """How much memory there is, if that a worker died is surely for want of it; else 0."""
        room = self._room()
        if room is None or not death.may_be_memory:
            return 0
        sure = death.is_too_large or death.is_python or (death.peak_memory_bytes or 0) >= room.most / 2
        return room.most if sure or self._memory.kernel_has_killed() else 0

    def _room(self) -> Room | None:
        return self._memory.room(self._pool.held_bytes() if self._memory.limit is not None else 0)

    def _rise(self) -> None:
        if self.limit < self._size and time.monotonic() >= self._next_rise and self._has_room(0):
            self.limit += 1
            self._next_rise = time.monotonic() + self._pause_s
            self._update()

    def _has_room(self, expected: int) -> bool:
        """Whether one more worker fits that comes to hold so many bytes, or as many as the largest of those at work."""
        room, needs = self._room(), [turn.need for turn in self._running]
        needs.append(expected or max(needs, default=0))
        return room is None or not needs[-1] or self._how_many_fit(room, needs) == len(needs)

    def _how_many_fit(self, room: Room, needs: list[int]) -> int:
        """How many of those who need so many bytes fit at once, the first one in any case."""
        held = sum(turn.worker.resident_bytes() for turn in self._running if turn.worker is not None)
        left = room.left + held + self._pool.idle_bytes() - _margin(room)
        for number, need in enumerate(needs):
            left -= need
            if left < 0 and number:
                return number
        return len(needs)

    def _relieve(self, room: Room) -> bool:
        """Do something for more memory before the system does; whether there was something to do.

        First go workers that are idle, then those that rest commit what they have; then the last that was let in ends,
        and begins again later. One that is at work by itself does not fit, if most of the memory is its own.
        """
        if self._pool.idle_bytes(all_of_them=True) > _margin(room) / 2:
            self._pool.discard_idle()
            return True
        resting = [turn for turn in self._running if turn.worker is not None and turn.is_idle()]
        for turn in resting:
            turn.wish(GIVE_WAY)
        if resting:
            return True
        at_work = [turn for turn in (self._alone, *self._running) if turn is not None and turn.worker is not None]
        if not at_work or (worker := at_work[-1].worker) is None:
            return False
        if len(at_work) > 1:
            worker.make_room()
        elif worker.resident_bytes() < room.most / 2:
            return False  # the memory is somebody else's
        else:
            worker.end_as_too_large()
        return True


def _margin(room: Room) -> float:
    """How many bytes are kept free."""
    return min(MARGIN * room.most, MOST_MARGIN)


def _until_next(room: Room | None, workers: int) -> float:
    """Seconds in which the workers cannot have filled the memory, within limits."""
    if room is None:
        return LONGEST_S
    free = room.left - _margin(room)
    return min(max(free / (FASTEST_GROWTH * workers), SHORTEST_S), LONGEST_S)


def holds_much(others: int, death: WorkerDied) -> bool:
    """Whether what idle workers hold may have made the difference to one that died."""
    return others * 20 >= (death.peak_memory_bytes or 0)
