"""How far each pass is, in numbers and as the line that a display shows."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from shardkit.storage.requests import REPEATS, count_of, repeats_text
from shardkit.units import human_bytes, human_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shardkit.runfolder.folder import RunFolder
TROUBLE_CHARACTERS = 300
SHORT_CHARACTERS = 12  # a longer reason to wait would push the records out of a narrow terminal


@dataclass(frozen=True)
class Counts:
    """How far the work is: records and bytes handled, and how many of the records were quarantined.

    ``repeated`` are the requests that the workers repeated in chunks that have ended, by reason.
    ``begun`` says whether any worker has come to a record. ``of_others`` and ``bytes_of_others`` are of records that
    other jobs have handled meanwhile, which count too.
    """

    records: int
    bytes: int
    quarantined: int
    repeated: Counter[str] = dataclasses.field(default_factory=Counter)
    begun: bool = True
    of_others: int = 0
    bytes_of_others: int = 0


class Meter(Protocol):
    """Reads how far a pass is."""

    total: int

    def read(self) -> tuple[int, str]:
        """The progress as a number out of ``total``, and in words."""

    def left_s(self) -> float | None:
        """How long the rest will take at the present pace, if there is a rest and a pace."""


class RecordMeter:
    """Pass 1: records, bytes, rates, the time left, the quarantine."""

    def __init__(self, records: int, size_bytes: int, before: Counts, counts: Callable[[], Counts]) -> None:
        self.total = records
        self._bytes = size_bytes
        self._before = before
        self._counts = counts
        self._begun = time.monotonic()
        self._own = REPEATS.counts()

    def read(self) -> tuple[int, str]:
        """Records handled, and a line about them."""
        counts = self._counts()
        elapsed = time.monotonic() - self._begun
        done = counts.records - self._before.records
        # The most important parts come first: a narrow terminal shows no more.
        parts = [f"{counts.records:,}/{self.total:,} records", f"{counts.quarantined:,} quarantined"]
        if counts.begun or done:
            parts.append(human_bytes(counts.bytes))
        else:
            parts.append("starting workers")
        if done and elapsed > 0:
            rate = (counts.bytes - self._before.bytes) / elapsed
            parts.append(f"{done / elapsed:,.0f} records/s, {human_bytes(rate)}/s")
        left_s = self._left_s(counts)
        parts.append(f"ETA {human_seconds(left_s)}" if left_s is not None else human_seconds(elapsed))
        if repeats := repeats_text(counts.repeated + (REPEATS.counts() - self._own)):
            parts.append(f"requests: {repeats}")
        return counts.records, " | ".join(parts)

    def left_s(self) -> float | None:
        """How long the rest will take; 0 if there is none."""
        counts = self._counts()
        return self._left_s(counts) if counts.records < self.total else 0.0

    def _left_s(self, counts: Counts) -> float | None:
        """Seconds left, by the mean of what records and what bytes say."""
        done = counts.records - counts.of_others - self._before.records
        if done <= 0 or counts.records >= self.total:
            return None
        elapsed = time.monotonic() - self._begun
        shares = [(self.total - counts.records) / done]
        done_bytes = counts.bytes - counts.bytes_of_others - self._before.bytes
        if done_bytes > 0:
            shares.append(max(self._bytes - counts.bytes, 0) / done_bytes)
        return elapsed * sum(shares) / len(shares)


class RowMeter:
    """Pass 2: rows merged."""

    def __init__(self, rows: int, count: Callable[[], int]) -> None:
        self.total = rows
        self._count = count
        self._begun = time.monotonic()

    def read(self) -> tuple[int, str]:
        """Rows merged, and a line about them."""
        rows = self._count()
        elapsed = time.monotonic() - self._begun
        rate = f" | {rows / elapsed:,.0f} rows/s" if elapsed > 0 and rows else ""
        return rows, f"merging: {rows:,}/{self.total:,} rows{rate} | {human_seconds(elapsed)}"

    def left_s(self) -> float | None:
        """Not told."""
        return None


class StealMeter:
    """Records of other jobs' shards that a job does when it has done its own."""

    total = 0

    def __init__(self, counts: Callable[[], Counts]) -> None:
        self._counts = counts
        self._begun = time.monotonic()

    def read(self) -> tuple[int, str]:
        """Records handled, and a line about them."""
        counts = self._counts()
        parts = [f"for slower jobs: {counts.records:,} records", human_bytes(counts.bytes)]
        return counts.records, " | ".join([*parts, human_seconds(time.monotonic() - self._begun)])

    def left_s(self) -> float | None:
        """Unknown."""
        return None


class JobMeter:
    """A run's jobs: how many have ended, and how many records they have handled together.

    ``earlier`` are jobs, by status, that are in the queue and do not count.
    """

    def __init__(self, folder: RunFolder, earlier: Mapping[str, int], *, look_every_s: float) -> None:
        self.total: int = folder.plan()["totals"]["records"]
        self._earlier = earlier
        self._folder = folder
        self._look_every_s = look_every_s
        self._next_look = 0.0
        self._begun = time.monotonic()
        self._records = self._quarantined = 0
        self._repeated: Counter[str] = Counter()
        self._line = ""

    def read(self, counts: Mapping[str, int] | None, trouble: str = "", waits_for: str = "") -> tuple[int, str]:
        """Records handled, and a line about the run's jobs, by status; without them, as they are at the end.

        ``waits_for`` is what most of those wait for that the engine has and has not begun.
        """
        if time.monotonic() >= self._next_look or counts is None:
            self._look()
            self._next_look = time.monotonic() + self._look_every_s
        if counts is not None:
            mine = {status: count - self._earlier.get(status, 0) for status, count in counts.items()}
            ended = sum(mine[status] for status in ("Completed", "Failed", "Stopped"))
            self._line = f"jobs: {ended:,}/{sum(mine.values()):,} ended, {mine['InProgress']:,} running"
            if mine["Launched"]:
                short = f" ({waits_for})" if 0 < len(waits_for) <= SHORT_CHARACTERS else ""
                self._line += f", {mine['Launched']:,} waiting{short}"
            if mine["Failed"]:
                self._line += f", {mine['Failed']:,} failed"
        parts = [self._line, f"{self._records:,}/{self.total:,} records", f"{self._quarantined:,} quarantined"]
        parts.append(human_seconds(time.monotonic() - self._begun))
        if repeats := repeats_text(self._repeated):
            parts.append(f"requests: {repeats}")
        if len(waits_for) > SHORT_CHARACTERS:
            parts.append(f"waiting for: {waits_for}")
        if trouble:
            parts.append(trouble[:TROUBLE_CHARACTERS])
        return self._records, " | ".join(parts)

    def _look(self) -> None:
        latest = {str(beat["shard"]): beat for beat in self._folder.heartbeats() if "records" in beat}
        self._records = sum(int(beat["records"]) for beat in latest.values())
        self._quarantined = sum(int(beat["quarantined"]) for beat in latest.values())
        repeats = [count_of(beat) + Counter(beat.get("repeated_by_workers", {})) for beat in latest.values()]
        self._repeated = sum(repeats, Counter())
