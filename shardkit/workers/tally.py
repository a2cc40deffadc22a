"""What is counted while workers are at their chunks."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from shardkit.errors import BudgetExceeded
from shardkit.runfolder.meters import Counts
from shardkit.storage.requests import count_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardkit.runfolder.document_types import Marker
    from shardkit.runfolder.stop import Stop
    from shardkit.workers.board import Slot


class Tally:
    """Counts what is committed and what the workers are at, and stops the work when too much has failed."""

    def __init__(self, slots: Sequence[Slot], stop: Stop, *, before: Counts, max_quarantined: int) -> None:
        self._slots = slots
        self._stop = stop
        self._committed = before
        self._before = before.records
        self._max_quarantined = max_quarantined
        self._of_others = self._bytes_of_others = 0
        self._lock = threading.Lock()

    def add(self, marker: Marker, slot: Slot | None = None) -> None:
        """Count a chunk's marker instead of what the board says of the chunk, if it was done on this machine."""
        with self._lock:
            if slot is not None:
                slot.begin_chunk()
            self._add(marker)

    def add_of_others(self, marker: Marker) -> None:
        """Count a marker that another job has written."""
        with self._lock:
            self._add(marker)
            self._of_others += marker["records"]["listed"]
            self._bytes_of_others += marker.get("bytes_in", 0)

    def _add(self, marker: Marker) -> None:
        committed, records = self._committed, marker["records"]
        self._committed = Counts(
            committed.records + records["listed"],
            committed.bytes + marker["bytes_in"],
            committed.quarantined + records["quarantined"],
            committed.repeated + count_of(marker),
        )

    def counts(self) -> Counts:
        """The counts as of now."""
        with self._lock:
            committed, of_others = self._committed, (self._of_others, self._bytes_of_others)
            live = [slot.read() for slot in self._slots]
        return Counts(
            committed.records + sum(r.done for r in live),
            committed.bytes + sum(r.bytes for r in live),
            committed.quarantined + sum(r.failed for r in live),
            committed.repeated,
            begun=any(r.turn for r in live) or committed.records > self._before,
            of_others=of_others[0],
            bytes_of_others=of_others[1],
        )

    def check_budget(self) -> None:
        """Ask for the end when more records are quarantined than allowed."""
        quarantined = self.counts().quarantined
        if quarantined > self._max_quarantined and not self._stop.asked:
            # No time limit: the failures of a chunk are only final once it is committed.
            self._stop.ask(BudgetExceeded(f"{quarantined} records are quarantined."), patience_s=None)
