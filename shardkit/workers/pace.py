"""How fast the function may be called: all workers of a machine together keep to one rate."""

from __future__ import annotations

import fcntl
import os
import struct
import time

NEXT = struct.Struct("=d")


class Pace:
    """Gives each call its time to begin, evenly spaced, so that no burst follows a pause.

    Args:
        path: A file that all processes with this pace share; it is made if there is none.
        per_s: How many calls may begin in a second.
    """

    _clock = staticmethod(time.monotonic)  # of the machine, not of the process
    _sleep = staticmethod(time.sleep)  # bound now, because the function may replace it

    def __init__(self, path: str, per_s: float) -> None:
        self._path = path
        self._gap_s = 1 / per_s
        self._begins_at: float | None = None

    def reserve(self) -> float:
        """How many seconds from now the next call may begin; nobody else begins one then."""
        # Opened each time: what a lock belongs to is the opening, and the function may close any descriptor.
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            data = os.pread(file, NEXT.size, 0)
            now = self._clock()
            at: float = max(now, *NEXT.unpack(data)) if len(data) == NEXT.size else now
            os.pwrite(file, NEXT.pack(at + self._gap_s), 0)
        finally:
            os.close(file)
        return at - now

    def waited(self, most_s: float) -> bool:
        """Wait until a call may begin, but not for long; whether it may."""
        if self._begins_at is None:
            self._begins_at = self._clock() + self.reserve()
        left_s = self._begins_at - self._clock()
        if left_s > 0:
            self._sleep(min(left_s, most_s))
        if left_s > most_s:
            return False
        self._begins_at = None
        return True
