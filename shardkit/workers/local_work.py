"""The workers of this machine, as `micro.run_chunks` hands them chunks."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from shardkit.workers.backend import NAME
from shardkit.workers.pool import WorkerPool
from shardkit.workers.publish import Publisher, publish_chunk
from shardkit.workers.supervisor import Supervisor
from shardkit.workers.tasks import OPTIONAL, columns_of_records

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.dataset.merge import Merge
    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.document_types import Marker
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import Ledger
    from shardkit.runfolder.others import Others
    from shardkit.runfolder.stop import Stop
    from shardkit.workers.tally import Tally
    from shardkit.workers.tasks import Chunk, ChunkTask


class LocalWork:
    """Each call sees a chunk through in a lane of this process; its worker, or the publisher, commits it."""

    def __init__(
        self, folder: RunFolder, pool: WorkerPool, supervisor: Supervisor, stop: Stop, attempt: Attempt, *, by: str
    ) -> None:
        self.joblib: dict[str, Any] = {"backend": NAME, "stop": stop, "claims_next": pool.claims_next}
        self.do = supervisor.see_through
        columns = columns_of_records(pool.inside, are_fetched=pool.fetches)
        self._records = folder.records(columns, if_there=OPTIONAL)
        self._attempt = attempt
        self._by = by

    def task(self, chunk: Chunk) -> ChunkTask:
        """The chunk with its records."""
        return chunk.task(self._records, self._attempt.number, self._by)

    def done(self, outcome: list[Marker]) -> None:
        """The lane has counted them, in the moment in which the board forgot the chunk."""

    def lost(self) -> list[Chunk]:
        """None: a chunk whose worker dies stays in its lane."""
        return []


class LocalWorkers(WorkerPool):
    """Worker processes of this machine."""

    @property
    def threads(self) -> int:
        """One for each worker: they have ended when parts are merged."""
        return self.size

    def merge_days(self, ledger: Ledger, merge: Merge, attempt: Attempt) -> bool:
        """Leave them to pass 2, whose threads use this machine."""
        return False

    @contextlib.contextmanager
    def working(
        self,
        folder: RunFolder,
        tally: Tally,
        stop: Stop,
        *,
        attempt: Attempt,
        timeout_s: float | None,
        others: Others | None = None,
    ) -> Iterator[LocalWork]:
        """Get ready for the chunks of an attempt; on leaving, all that workers have finished is committed.

        Raises:
            StorageError: something could not be uploaded.
        """
        # An output that is far away gets each chunk from the spool while the workers go on with the next.
        publisher = Publisher(functools.partial(publish_chunk, folder, self.spool), stop) if self.spool else None
        publish = publisher.add if publisher is not None else None
        supervisor = Supervisor(self, stop, tally, timeout_s=timeout_s, publish=publish, others=others)
        try:
            yield LocalWork(folder, self, supervisor, stop, attempt, by=others.by if others is not None else "")
        finally:
            if publisher is not None:
                publisher.close()
        if publisher is not None:
            publisher.check()
