"""Shared memory in which each worker notes the record that it works on, in well under a microsecond a record."""

from __future__ import annotations

import array
import contextlib
import fcntl
import mmap
import os
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

FIELDS = 8
RECORD, TURN, DONE, BYTES, FAILED, STATE, WISH, RESTS = range(FIELDS)
# Outside any record; within one; between its end and the beginning of the next; within any of several; within one of
# the next chunk.
OUTSIDE, AT_IT, AFTER, AT_SEVERAL, AHEAD = range(5)
NOBODY = -1  # in a place for some of several records
COUNTS = 1 << 24  # a place holds the first position, times this, plus how many there are
GO_ON, STOP, REST, GIVE_WAY = range(4)


@dataclass(frozen=True)
class Reading:
    """What a worker was working on.

    ``record`` is the position in the chunk of the record that began last (-1: none of the present chunk); ``state``
    says whether the worker is ``AT_IT``, ``AFTER`` it, or ``OUTSIDE`` any record. ``turn`` counts the records begun, so
    that a watcher can measure by its own clock how long one has taken. ``done``, ``bytes`` and ``failed`` count the
    records of the present chunk. ``several`` are the positions of all records that it was at, if there may be more than
    one: those of a batch, or of calls that wait for something.
    """

    record: int
    turn: int
    done: int
    bytes: int
    failed: int
    state: int
    several: tuple[int, ...] = ()

    @property
    def position(self) -> int:
        """The position of the record that is to blame if the worker dies now; -1 if none is, or one of several."""
        return self.record if self.state in {AT_IT, AFTER} else -1

    @property
    def may_hang(self) -> bool:
        """Whether it counts how long the worker has been at this."""
        return self.state in {AT_IT, AT_SEVERAL, AHEAD}


class Slot:
    """One worker's line on the board: its fields, and places for the records that it is at, if these may be several.

    The board's first cell says how many cells a line has.
    """

    def __init__(self, board: mmap.mmap, number: int) -> None:
        cells = memoryview(board)[: len(board) // 8 * 8].cast("q")
        width = cells[0]
        line = cells[1 + number * width : 1 + (number + 1) * width]
        self._cells, self._places = line[:FIELDS], line[FIELDS:]

    @classmethod
    def inherited(cls, descriptor: int, number: int) -> Slot:
        """The line of a worker that was started with the board's descriptor; closes the descriptor."""
        try:
            return cls(mmap.mmap(descriptor, 0), number)
        finally:
            os.close(descriptor)

    def begin_chunk(self) -> None:
        """Reset the counts."""
        self._cells[RECORD] = -1
        self._cells[STATE] = OUTSIDE
        self._cells[RESTS] = 0
        self._cells[DONE] = self._cells[BYTES] = self._cells[FAILED] = 0
        self.leave_all()

    def begin_record(self, position: int) -> None:
        """Note that the record at ``position`` of the chunk begins now."""
        self._cells[TURN] += 1
        self._cells[RECORD] = position
        self._cells[STATE] = AT_IT

    def end_record(self, size_bytes: int, *, failed: bool) -> None:
        """Count a record; it stays the current one, because storing its rows may still bring the worker down."""
        self._cells[STATE] = AFTER
        self._cells[DONE] += 1
        self._cells[BYTES] += size_bytes
        self._cells[FAILED] += failed

    def enter(self, first: int, count: int = 1) -> None:
        """Note that ``count`` records from position ``first`` on are among several that the worker is at."""
        self._places[self._places.tolist().index(NOBODY)] = first * COUNTS + count

    def leave(self, first: int) -> None:
        """Note that those from ``first`` on are not any more."""
        for place, value in enumerate(self._places.tolist()):
            if value != NOBODY and value // COUNTS == first:
                self._places[place] = NOBODY
                return

    def leave_all(self) -> None:
        """Note that it is at none of several."""
        for place in range(len(self._places)):
            self._places[place] = NOBODY

    def begin_several(self) -> None:
        """Note that what happens from now on may be the doing of any of the several records."""
        self._cells[TURN] += 1
        self._cells[STATE] = AT_SEVERAL

    def begin_storing(self, position: int) -> None:
        """Note that the rows of the record at ``position`` are stored, which may bring the worker down."""
        self._cells[RECORD] = position
        self._cells[STATE] = AFTER

    def begin_ahead(self) -> None:
        """Note that what happens from now on is the doing of a record of the next chunk."""
        self._cells[TURN] += 1
        self._cells[STATE] = AHEAD

    def count_record(self, size_bytes: int, *, failed: bool) -> None:
        """Count a record."""
        self._cells[DONE] += 1
        self._cells[BYTES] += size_bytes
        self._cells[FAILED] += failed

    def finish_records(self) -> None:
        """Note that what follows belongs to no record."""
        self._cells[STATE] = OUTSIDE

    def wish(self, wish: int) -> None:
        """Ask the worker to do something after the present record; ``STOP`` (commit what it has) cannot be undone."""
        if self._cells[WISH] != STOP:
            self._cells[WISH] = wish

    @property
    def wished(self) -> int:
        """What the worker was asked to do after the present record."""
        return self._cells[WISH]

    @property
    def rests(self) -> bool:
        """Whether the worker waits until it is asked to go on."""
        return bool(self._cells[RESTS])

    @rests.setter
    def rests(self, rests: bool) -> None:
        self._cells[RESTS] = rests

    def read(self) -> Reading:
        """What the board says now."""
        cells = self._cells
        places = [divmod(value, COUNTS) for value in self._places.tolist() if value != NOBODY]
        several = tuple(position for first, count in places for position in range(first, first + count))
        return Reading(cells[RECORD], cells[TURN], cells[DONE], cells[BYTES], cells[FAILED], cells[STATE], several)


class Board:
    """The file behind the slots, which is in memory if the system allows it.

    It has no name, and workers inherit its descriptor, so nothing is left behind however the processes end. ``several``
    is how many calls of the function a worker may be at, if they wait.
    """

    def __init__(self, slots: int, *, several: int = 0) -> None:
        self._file = _memory_file()
        width = FIELDS + several
        # All of it is written, not truncate(): a full disk should fail here, not by a SIGBUS.
        self._file.write(array.array("q", [width, *[0] * (slots * width)]).tobytes())
        _seal(self._file.fileno())
        shared = mmap.mmap(self._file.fileno(), 0)
        self.slots = [Slot(shared, number) for number in range(slots)]

    @property
    def descriptor(self) -> int:
        """The open file."""
        number: int = self._file.fileno()
        return number

    def close(self) -> None:
        """Close the file; the slots stay readable."""
        self._file.close()


def _memory_file() -> Any:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return os.fdopen(os.memfd_create("shardkit-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "wb", 0)
    memory = "/dev/shm"  # noqa: S108  the file made there has no name
    folder = memory if os.access(memory, os.W_OK) else None
    return tempfile.TemporaryFile(prefix="shardkit-board-", dir=folder, buffering=0)


def _seal(descriptor: int) -> None:
    """Fix the file's size, whatever a worker's function does to the descriptor, of which mmap keeps a copy."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
