"""What other jobs do of the chunks that this job works on: how a job learns that it need not do a chunk any more."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from shardkit.errors import ShardkitError
from shardkit.runfolder import claims
from shardkit.storage.side_by_side import together

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from shardkit.runfolder.document_types import Marker
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import Ledger

LOOK_S = 5.0  # between two looks at the claims on the job's own chunks: one request each
CLOSE_LOOK_S = 1.0  # while other jobs are at chunks that this one is at too: two requests for each shard


class Others:
    """Looks at what other jobs commit in some shards; all that it says may be asked for in any thread.

    Args:
        ledger: A ledger of the run, of whichever records.
        by: The attempt that looks.
        closely: Look often from the beginning, and not only once there are claims.
    """

    def __init__(self, ledger: Ledger, by: str, *, closely: bool = False) -> None:
        self.by = by
        self.turn = 0  # counts the markers that have come
        self._ledger = ledger
        self._folder: RunFolder = ledger.folder
        self._open = np.zeros(ledger.planned, bool)
        self._records: dict[int, np.ndarray] = {}
        self._known: dict[int, set[str]] = {}
        self._claimed: dict[int, frozenset[int]] = {}
        self._closely = closely
        self._counted: Callable[[Marker], None] = lambda _: None
        self._looked = -math.inf
        self._looking = threading.Lock()
        self._end = threading.Event()

    def watch(self, shard: int, records: np.ndarray, known: Collection[str] = ()) -> None:
        """Look at a shard from now on: at these records of it, and not at the markers ``known`` by name."""
        self._open[records] = True
        self._records[shard] = records
        self._known.setdefault(shard, set()).update(known)

    @property
    def watched(self) -> list[int]:
        """The shards that are looked at."""
        return list(self._known)

    def claimed(self, shard: int) -> frozenset[int]:
        """The chunks of a shard that were claimed at the last look."""
        return self._claimed.get(shard, frozenset())

    def open(self, records: np.ndarray) -> np.ndarray:
        """Those of these records that nobody has committed yet."""
        left: np.ndarray = records[self._open[records]]
        return left

    def have_done(self, records: np.ndarray) -> bool:
        """Whether all of these records are committed."""
        return not self._open[records].any()

    def note(self, marker: Marker, records: np.ndarray) -> None:
        """This job has committed these records."""
        if (known := self._known.get(marker["shard"])) is not None:
            known.add(self._folder.marker_name(marker))
        self._open[records] = False

    def look(self, *, unless_s: float = 0.0) -> None:
        """Look at the claims and, where there are any, at the markers that have come.

        It does not if the last look was less than ``unless_s`` ago. A shard is left once all is done there.

        Raises:
            StorageError: they cannot be listed or read.
        """
        with self._looking:
            if time.monotonic() - self._looked < unless_s:
                return
            together([partial(self._look_at, shard) for shard in list(self._known)])
            for shard in [shard for shard, records in self._records.items() if self.have_done(records)]:
                del self._records[shard], self._known[shard]
            self._looked = time.monotonic()

    def _look_at(self, shard: int) -> None:
        folder, known = self._folder, self._known[shard]
        self._claimed[shard] = claims.claimed(folder, shard)
        if not (self._closely or self._claimed[shard]):
            return
        names = [entry.key for entry in folder.files.entries(folder.markers_of(shard))]
        for marker in folder.read_markers([name for name in names if name not in known]):
            records = self._ledger.records_of(marker)
            if self._open[records].any():
                if self._open[records].all():
                    self._counted(marker)
                self._open[records] = False
            self.turn += 1
        known.update(names)

    @contextlib.contextmanager
    def watching(self, counted: Callable[[Marker], None] = lambda _: None) -> Iterator[None]:
        """Look now and then while the block runs; ``counted`` is told of markers whose records are all news."""
        self._counted = counted
        self._end.clear()
        thread = threading.Thread(target=self._live, name="shardkit-others", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()

    def _live(self) -> None:
        while not self._end.wait(CLOSE_LOOK_S if self._closely or any(self._claimed.values()) else LOOK_S):
            with contextlib.suppress(ShardkitError):  # what it does not learn now costs work that is done twice
                self.look(unless_s=CLOSE_LOOK_S / 2)
