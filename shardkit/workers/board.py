"""Shared memory in which each worker notes the record that it works on, in well under a microsecond a record."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

FIELDS = 8
SLOT_BYTES = FIELDS * 8
RECORD, TURN, DONE, BYTES, FAILED, STATE, WISH, RESTS = range(FIELDS)
OUTSIDE, AT_IT, AFTER = range(3)  # outside any record; within one; between its end and the beginning of the next
GO_ON, STOP, REST, GIVE_WAY = range(4)


@dataclass(frozen=True)
class Reading:
    """What a worker was working on.

    ``record`` is the position in the chunk of the record that began last (-1: none of the present chunk); ``state``
    says whether the worker is ``AT_IT``, ``AFTER`` it, or ``OUTSIDE`` any record. ``turn`` counts the records begun, so
    that a watcher can measure by its own clock how long one has taken. ``done``, ``bytes`` and ``failed`` count the
    records of the present chunk.
    """

    record: int
    turn: int
    done: int
    bytes: int
    failed: int
    state: int

    @property
    def position(self) -> int:
        """The position of the record that is to blame if the worker dies now; -1 if none is."""
        return -1 if self.state == OUTSIDE else self.record


class Slot:
    """One worker's line on the board."""

    def __init__(self, board: mmap.mmap, number: int) -> None:
        self._cells = memoryview(board)[: len(board) // 8 * 8].cast("q")[number * FIELDS : (number + 1) * FIELDS]

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
        return Reading(cells[RECORD], cells[TURN], cells[DONE], cells[BYTES], cells[FAILED], cells[STATE])


class Board:
    """The file behind the slots, which is in memory if the system allows it.

    It has no name, and workers inherit its descriptor, so nothing is left behind however the processes end.
    """

    def __init__(self, slots: int) -> None:
        self._file = _memory_file()
        self._file.write(bytes(slots * SLOT_BYTES))  # not truncate(): a full disk should fail here, not by a SIGBUS
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
