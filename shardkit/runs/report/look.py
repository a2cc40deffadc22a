"""What a report is made of, read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shardkit.runfolder.ledger import Ledger
from shardkit.runfolder.timings import RunTimings
from shardkit.runs.summary import Summary, summarize

if TYPE_CHECKING:
    import pyarrow as pa

    from shardkit.runfolder.document_types import PlanDocument, Result
    from shardkit.runfolder.folder import RunFolder


@dataclass(frozen=True)
class Look:
    """A run at one moment.

    ``result`` is None until the run has a dataset. ``begin_s`` and ``end_s``, in seconds since 1970, are when the first
    chunk began and the last one ended; both are None if no chunk says so.
    """

    folder: RunFolder
    plan: PlanDocument
    summary: Summary
    ledger: Ledger
    timings: RunTimings
    result: Result | None
    begin_s: float | None
    end_s: float | None

    @classmethod
    def at(cls, folder: RunFolder) -> Look:
        """Read a run's folder."""
        folder.plan()
        ledger = Ledger(folder)
        summary = summarize(folder, ledger)
        timings = RunTimings.of_ledger(ledger)
        begin, end = (_seconds_since_1970(timings.chunks[name]) for name in ("begin", "end"))
        known = ~np.isnan(begin) & ~np.isnan(end)
        return cls(
            folder,
            folder.plan(),
            summary,
            ledger,
            timings,
            folder.result() if summary.status == "done" else None,
            float(begin[known].min()) if known.any() else None,
            float(end[known].max()) if known.any() else None,
        )

    @property
    def is_live(self) -> bool:
        """Whether somebody works on the run."""
        return self.summary.status == "running"


def floats(column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers, with NaN for nulls."""
    import pyarrow as pa

    values: np.ndarray = column.cast(pa.float64()).combine_chunks().to_numpy(zero_copy_only=False)
    return values


def _seconds_since_1970(times: pa.ChunkedArray) -> np.ndarray:
    import pyarrow as pa

    return floats(times.cast(pa.int64())) / 1e6


def seconds_since(times: pa.ChunkedArray, begin_s: float) -> np.ndarray:
    """Times as seconds since a moment, with NaN for nulls."""
    return _seconds_since_1970(times) - begin_s


def rounded(value: float, digits: int = 4) -> float | None:
    """A number with so many significant digits, which makes the page smaller; None if it is none."""
    return None if np.isnan(value) else float(f"{value:.{digits}g}")
