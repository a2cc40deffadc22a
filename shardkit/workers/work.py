"""What `micro.run_chunks` asks of workers, be they processes of this machine or nodes of a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from shardkit.dataset.merge import Merge
    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import Ledger
    from shardkit.runfolder.others import Others
    from shardkit.runfolder.stop import Stop
    from shardkit.workers.board import Slot
    from shardkit.workers.tally import Tally
    from shardkit.workers.tasks import Chunk


class Work(Protocol):
    """The chunks of one attempt, as joblib hands them out."""

    @property
    def joblib(self) -> dict[str, Any]:
        """The backend that the calls go through, and its options; all of them arguments of `joblib.Parallel`."""

    @property
    def do(self) -> Callable[[Any], Any]:
        """Sees a task through, wherever it is run."""

    def task(self, chunk: Chunk) -> Any:
        """The argument of ``do`` for a chunk."""

    def done(self, outcome: Any) -> None:
        """Count what a call has returned."""

    def lost(self) -> list[Chunk]:
        """The chunks that went out and did not come back, to be handed out again.

        Raises:
            RunFailed: one has been lost too often.
        """


class Workers(Protocol):
    """Workers of a run.

    ``fetches`` says whether they get their objects from a store, ``chunk_records`` of how many records chunks are cut;
    ``left`` are the numbers of records that need more memory than there is, and are left open for a larger machine.
    """

    size: int
    fetches: bool
    left: list[int]
    chunk_records: int

    @property
    def threads(self) -> int:
        """With how many threads this process may merge."""

    def begin(self, count: int) -> None:
        """See that so many workers have begun, because there is work for them."""

    def working(
        self,
        folder: RunFolder,
        tally: Tally,
        stop: Stop,
        *,
        attempt: Attempt,
        timeout_s: float | None,
        others: Others | None = None,
    ) -> AbstractContextManager[Work]:
        """Get ready for the chunks of an attempt; ``others`` knows which of them other jobs have done."""

    def slots(self) -> Sequence[Slot]:
        """What the workers of this machine are at."""

    def merge_days(self, ledger: Ledger, merge: Merge, attempt: Attempt) -> bool:
        """Merge a run's days elsewhere, for pass 2 to take; whether there is such a place."""

    def hang_up(self) -> None:
        """Let all workers end by themselves; nothing can be asked of them any more."""
