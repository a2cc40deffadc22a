"""How much memory chunks come to need, learnt from those that are done."""

from __future__ import annotations

from collections import deque

REMEMBERED = 8  # chunks of a size: what they have needed most is expected of the next


class Needs:
    """Learns from each chunk how much memory its worker's process has had at most.

    What is expected of a chunk goes by the size of its largest record: chunks whose records are about as large are
    likely to need as much, and others say little about it. Sizes between two powers of two are alike.
    """

    def __init__(self) -> None:
        self._peaks: dict[int, deque[int]] = {}

    def learn(self, record_bytes: int, peak_bytes: int) -> None:
        """A chunk whose largest record has so many bytes has needed so many."""
        self._peaks.setdefault(record_bytes.bit_length(), deque(maxlen=REMEMBERED)).append(peak_bytes)

    def expected(self, record_bytes: int) -> int:
        """How much such a chunk will need; 0 if nothing is known.

        Of a size that is new, as much as of the next larger one that is known: chunks with large records come first.
        """
        if not self._peaks:
            return 0
        size = record_bytes.bit_length()
        larger = [known for known in self._peaks if known >= size]
        return max(self._peaks[min(larger) if larger else max(self._peaks)])
