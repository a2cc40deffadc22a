"""When the records of a chunk began and ended, and how many rows they gave, for its marker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from shardkit.tables.number_text import text_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardkit.runfolder.document_types import Timings

US = 1e6


class ChunkTimes:
    """Takes the times of a chunk's records, one after the other."""

    clock = staticmethod(time.perf_counter)  # bound now, because the function may replace it
    _wall_clock = staticmethod(time.time)

    def __init__(self, worker: str, job: str | None) -> None:
        self._worker = worker
        self._job = job
        self._begin_s = self._wall_clock()
        self._begun = self.clock()
        self._edges: list[float] = []
        self._rows: list[int] = []

    @property
    def seconds(self) -> float:
        """How long the chunk has taken so far."""
        return self.clock() - self._begun

    def add(self, begun: float, ended: float, rows: int) -> None:
        """Note the next record, which has ``begun`` and ``ended`` by the clock; one that failed has no rows."""
        self._edges += (begun, ended)
        self._rows.append(rows)

    def add_earlier(self, begin_s: float, seconds: float, rows: int) -> None:
        """Note the next record, which was run by itself before; ``begin_s`` is in seconds since 1970."""
        begun = self._begun + begin_s - self._begin_s
        self.add(begun, begun + seconds, rows)

    def timings(self, seconds: float, failed: Iterable[int]) -> Timings:
        """The same for the marker; the chunk took ``seconds``, and the records of these numbers have no rows."""
        for number in failed:
            self._rows[number] = 0
        edges = np.rint((np.array(self._edges) - self._begun) * US).astype(np.int64)
        gaps_and_durations = np.diff(edges, prepend=0)
        return {
            "worker": self._worker,
            "job": self._job,
            "begin_s": round(self._begin_s, 6),
            "end_s": round(self._begin_s + seconds, 6),
            "gaps_us": text_of(gaps_and_durations[::2]),
            "durations_us": text_of(gaps_and_durations[1::2]),
            "rows": text_of(np.array(self._rows, np.int64)),
        }
