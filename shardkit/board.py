"""A small shared memory where each worker notes what it is at, at a cost of well under a microsecond a record."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from dataclasses import dataclass

FIELDS = 8
SLOT_BYTES = FIELDS * 8
RECORD, STARTED, DONE, BYTES, FAILED, STOP = range(6)
BETWEEN_RECORDS = -1


@dataclass(frozen=True)
class Reading:
    """What a worker was at: the position of its record in the chunk (-1: between records), and since when.

    ``started`` is on the clock of ``time.monotonic``, in seconds; ``done``, ``bytes`` and ``failed`` count the
    records of the present chunk.
    """

    record: int
    started: float
    done: int
    bytes: int
    failed: int


class Slot:
    """One worker's line on the board."""

    def __init__(self, board: mmap.mmap, number: int) -> None:
        self._cells = memoryview(board).cast("q")[number * FIELDS : (number + 1) * FIELDS]

    @classmethod
    def inherited(cls, descriptor: int, number: int) -> Slot:
        """The line of a worker that was started with the board's descriptor, which is closed."""
        try:
            return cls(mmap.mmap(descriptor, 0), number)
        finally:
            os.close(descriptor)

    def begin_chunk(self) -> None:
        """Start counting anew."""
        self._cells[RECORD] = BETWEEN_RECORDS
        self._cells[DONE] = self._cells[BYTES] = self._cells[FAILED] = 0

    def begin_record(self, position: int) -> None:
        """Note that the record at ``position`` of the chunk begins now."""
        self._cells[STARTED] = time.monotonic_ns()
        self._cells[RECORD] = position

    def end_record(self, size_bytes: int, *, failed: bool) -> None:
        """Count a record; it stays the current one, for its rows may yet bring the worker down."""
        self._cells[STARTED] = 0
        self._cells[DONE] += 1
        self._cells[BYTES] += size_bytes
        self._cells[FAILED] += failed

    def finish_records(self) -> None:
        """Note that what follows belongs to no record."""
        self._cells[RECORD] = BETWEEN_RECORDS

    def ask_to_stop(self) -> None:
        """Ask the worker to commit what it has after the present record."""
        self._cells[STOP] = 1

    def is_asked_to_stop(self) -> bool:
        """Whether the worker shall stop after the present record."""
        return bool(self._cells[STOP])

    def read(self) -> Reading:
        """What the board says now."""
        cells = self._cells
        return Reading(cells[RECORD], cells[STARTED] / 1e9, cells[DONE], cells[BYTES], cells[FAILED])


class Board:
    """The file behind the slots; it lies in memory where the system has such a place.

    It has no name, and workers inherit its descriptor: so nothing is left behind, however the processes end.
    """

    def __init__(self, slots: int) -> None:
        memory = "/dev/shm"  # noqa: S108  the file made there has no name
        folder = memory if os.access(memory, os.W_OK) else None
        self._file = tempfile.TemporaryFile(prefix="shardkit-board-", dir=folder, buffering=0)  # noqa: SIM115
        self._file.write(bytes(slots * SLOT_BYTES))  # not truncate(): a full disk shall show here, not as a SIGBUS
        shared = mmap.mmap(self._file.fileno(), 0)
        self.slots = [Slot(shared, number) for number in range(slots)]

    @property
    def descriptor(self) -> int:
        """The open file."""
        return self._file.fileno()

    def close(self) -> None:
        """Let go of the file; the slots stay readable."""
        self._file.close()
