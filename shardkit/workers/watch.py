"""How long a worker has been at its record, by the program's own clock: the worker's may have been put back or up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardkit.workers.board import Reading, Slot

LONGEST_GAP_S = 1.0  # between two looks; in a longer one this program was paused, and most likely the worker with it


class Watch:
    """Looks at a worker's line on the board again and again."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self.begin()

    def begin(self) -> None:
        """Nothing is known of what the worker is at."""
        self._last = time.monotonic()
        self._turn = -1
        self._seconds = 0.0

    def look(self) -> tuple[Reading, float]:
        """What the worker is at, and for how many seconds it has been, as far as this was seen."""
        now, reading = time.monotonic(), self._slot.read()
        if reading.turn == self._turn:
            self._seconds += min(now - self._last, LONGEST_GAP_S)
        else:
            self._turn, self._seconds = reading.turn, 0.0
        self._last = now
        return reading, self._seconds
