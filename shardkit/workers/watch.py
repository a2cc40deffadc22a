"""How long a worker has worked on its record, by the program's clock: the function may have replaced the worker's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardkit.workers.board import Reading, Slot

LONGEST_GAP_S = 1.0  # between two looks; after a longer one this program was paused, and most likely the worker too


class Watch:
    """Looks at a worker's line on the board again and again."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self.begin()

    def begin(self) -> None:
        """Forget what the worker was working on."""
        self._last = time.monotonic()
        self._turn = -1
        self._seconds = 0.0

    def look(self) -> tuple[Reading, float]:
        """What the worker is working on, and for how many seconds it has been seen at it."""
        now, reading = time.monotonic(), self._slot.read()
        if reading.turn == self._turn:
            self._seconds += min(now - self._last, LONGEST_GAP_S)
        else:
            self._turn, self._seconds = reading.turn, 0.0
        self._last = now
        return reading, self._seconds
